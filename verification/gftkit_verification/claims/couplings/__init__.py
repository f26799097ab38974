"""T10: couplings, labels and conditions."""
