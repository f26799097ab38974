"""``python -m gftkit`` is ``gft``."""

from gftkit.cli import main

main()
