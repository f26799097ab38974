"""Proofs by sympy, on the shipped functions themselves: what algebra decides for all drifts, paths and schedules."""

from gftkit.runtime.extras import require

# To leave the proofs out where sympy isn't installed would be to check less than is said.
require("symbolic", "the proofs among the claims")
