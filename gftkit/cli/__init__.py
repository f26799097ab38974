"""The command line `gft`."""

from gftkit.cli.app import main as main
