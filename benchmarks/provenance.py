"""Where a number comes from: commit, machine, versions; and the CSV that holds it."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import amc
from amc.runtimes import TorchRuntime

RESULTS = Path("outputs") / "benchmarks"


def provenance(seed: int) -> dict[str, object]:
    """Columns that every benchmark row carries."""
    return {
        "seed": seed,
        "commit": COMMIT,
        "amc": amc.__version__,
        "machine": TorchRuntime().machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


COMMIT = _commit()  # as the code is loaded: a run of an hour may see another before it ends


def write_csv(name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows to ``outputs/benchmarks/<name>.csv``."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Print rows as a Markdown table."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
