"""T13, T14 and the shipped training loop."""
