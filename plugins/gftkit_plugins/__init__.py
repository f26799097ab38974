"""The built-in components of gftkit, each through the public door: entry points in group ``gftkit``."""
