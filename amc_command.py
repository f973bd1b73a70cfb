"""Where the command ``amc`` starts: Ctrl-C is heard before anything else is imported."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported is no traceback."""
    try:
        if sys.getfilesystemencoding() == "ascii":
            _begin_anew_in_utf8()
        from amc.cli import main as run
    except KeyboardInterrupt:
        print("interrupted by Ctrl-C before anything began", file=sys.stderr)
        sys.exit(130)
    try:
        run()
        sys.stdout.flush()
    except BrokenPipeError:  # of `amc ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _begin_anew_in_utf8() -> None:
    """Become the same process in Python's UTF-8 mode, which cannot be turned on later.

    In the locale "C" Python takes names of files for ASCII. TensorBoard, for one, cannot write
    into a folder that has another name.
    """
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
