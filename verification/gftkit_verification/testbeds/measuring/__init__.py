"""Measurements of claims: differences, orders, standardised errors, gradients and proofs."""
