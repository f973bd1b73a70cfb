"""Where the command ``amc`` starts: Ctrl-C is heard before anything else is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported is no traceback."""
    try:
        from amc.cli import main as run
    except KeyboardInterrupt:
        print("interrupted by Ctrl-C before anything began", file=sys.stderr)
        sys.exit(130)
    run()
