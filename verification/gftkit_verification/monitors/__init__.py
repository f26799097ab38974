"""The monitors ``theory`` and ``memorisation``, which need oracles; each package re-exports its monitor.

Neither is imported here: a run loads only the monitor that it names.
"""
