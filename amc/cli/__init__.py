"""The command line: ``amc search``, ``compare``, ``apply``, ``finetune``, ``export``, ``profile``."""

from amc.cli.main import main

__all__ = ["main"]
