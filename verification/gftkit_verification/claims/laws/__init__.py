"""T5, T6, T11 and T12: laws of paths and samples, and likelihoods."""
