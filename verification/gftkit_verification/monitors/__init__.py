"""Monitors that need oracles."""
