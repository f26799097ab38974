"""``python -m gftkit`` is ``gft``."""

from gftkit.cli.app import main

main()
