"""Thousands of damaged packed files: how each is refused, and how long that takes.

    python -m benchmarks.packed_fuzz --mutations 10000

Bytes change, go, come or are cut off, with the checksum that they had and with the right one; the
header is changed field by field, and tensors with the table that fits them. Anything but an
`AmcError` or a network ends the benchmark with its traceback and the file.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from amc.errors import AmcError
from amc.export.packed.network import load_packed, pack
from benchmarks.provenance import print_table, provenance, write_csv
from tests.export.packed.damage import damaged
from tests.export.packed.nets import compressed, small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = compressed()
    contents = [pack(*made, "small", coder=coder).content for coder in ("range", "huffman")]
    draw, found, slowest = random.Random(arguments.seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.amcp"
        for number in range(arguments.mutations):
            content = damaged(contents[number % 2], draw)
            path.write_bytes(content)
            start = time.perf_counter()
            try:
                load_packed(path, small())
                found["a network"] += 1
            except AmcError as error:
                found[type(error).__name__] += 1
            except BaseException:
                print(f"mutation {number}: {content.hex()}")
                raise
            slowest = max(slowest, time.perf_counter() - start)
    rows = [
        {"outcome": outcome, "files": count, "slowest_s": round(slowest, 3)}
        for outcome, count in found.most_common()
    ]
    print_table(rows, ["outcome", "files", "slowest_s"])
    print(write_csv("packed_fuzz", [row | provenance(arguments.seed) for row in rows]))


if __name__ == "__main__":
    main()
