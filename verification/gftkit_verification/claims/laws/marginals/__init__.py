"""T12: the ODE and the SDEs of one flow have the same marginals; proofs by sympy are in ``proofs``."""
