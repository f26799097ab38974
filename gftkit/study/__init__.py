"""Studies: methods compared over data sizes, couplings and seeds, with paired differences and their intervals."""
