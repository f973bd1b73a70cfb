"""The command line: one short recipe for each command of ``amc``."""

import os

# Before torch is loaded: its threads must not spin while another process has their core. Two
# searches side by side on two cores are five times slower if they do; one alone runs as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from amc.cli.main import main

__all__ = ["main"]
