"""Verification of gftkit: exact oracles, claims that are measured on them, and monitors that use them."""
