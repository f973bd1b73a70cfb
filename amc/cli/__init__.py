"""The command line: one short recipe for each command of ``amc``."""

from amc.cli.main import main

__all__ = ["main"]
