"""The monitors ``theory`` and ``memorisation``, which need oracles; each package re-exports its monitor.

One plugin gives both: its hook is in ``theory/monitor.py``.
"""
