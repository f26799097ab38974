"""Exact oracles: flows whose drift, law and distances are known."""
