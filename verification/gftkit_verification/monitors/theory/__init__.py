"""The monitor `theory`: whether a run follows the theory."""
