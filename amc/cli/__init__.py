"""The command line: one short recipe for each command of ``amc``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Before torch is loaded: its threads must not spin while another process has their core. Two
# searches side by side on two cores are five times slower if they do; one alone runs as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, as `amc.cli.entry.main` says; Ctrl-C during its import is no traceback."""
    try:
        from amc.cli import entry
    except KeyboardInterrupt:
        print("interrupted by Ctrl-C before anything began", file=sys.stderr)
        sys.exit(130)
    entry.main(arguments)


__all__ = ["main"]
