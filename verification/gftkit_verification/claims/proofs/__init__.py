"""Proofs by sympy, on the shipped functions themselves: what algebra decides for all drifts, paths and schedules."""
