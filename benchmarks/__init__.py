"""Speed and quality, measured: every module prints a table and writes a CSV."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, for the same reason
