"""Fills the list that ``amc profile todo=layers.csv`` writes, for docs/tutorials/board.md.

python fill_table.py layers.csv my_board.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROWS_OF_BOARD = {"conv2d", "linear"}


def milliseconds(row: dict[str, str]) -> float:
    """What one operator takes on the board. Put your stopwatch here.

    This stands in for one: a board of 2 billion multiply-adds a second that takes 8 input channels
    at a time, and 0.02 ms for every call.
    """
    number = {name: float(value) for name, value in row.items() if value.replace(".", "").isdigit()}
    area = number["out_h"] * number["out_w"]
    if row["op"] not in ROWS_OF_BOARD:
        return 0.002 + 1e-7 * area * number["out_channels"]
    chunks = -(-number["in_channels"] // 8) * 8
    multiply_adds = area * number["kernel_h"] * number["kernel_w"] * chunks * number["out_channels"]
    return 0.02 + multiply_adds / 2e9 * 1e3


def fill(source: Path, target: Path) -> int:
    """Write the list with every cell of ``latency_ms`` filled in; gives the number of rows."""
    lines = source.read_text(encoding="utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    rows = list(csv.DictReader(lines[len(header) :]))
    for row in rows:
        row["latency_ms"] = f"{milliseconds(row):.6f}"
    with target.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in header)
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    print(f"{fill(Path(sys.argv[1]), Path(sys.argv[2]))} rows, written to {sys.argv[2]}")
