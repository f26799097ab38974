"""The data sets of WILDS."""
