"""The shipped training loop on such problems, in memory."""
