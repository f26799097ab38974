"""Exact oracles that gftkit's theory is checked against."""
