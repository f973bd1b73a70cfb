"""What a search computes once: seconds and memory until the first strategy can be tried.

    python -m benchmarks.preparation --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10
    python -m benchmarks.preparation --network resnet50 --synthetic 224
    python -m benchmarks.preparation --network timm/deit_tiny_patch16_224 --synthetic 96

Tracing, moments, removal paths, errors of single decisions, the program's allocation; under a MACs
budget, as other budgets add a table that is measured once for all networks. With --synthetic,
random images of that size and random labels: no accuracy is worth a look, the work is the same.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from amc.cost.budget import Budget
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.knapsack import knapsack_strategy


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, "resnet56", synthetic=True)
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--evaluate", action="store_true", help="the first candidate as well")
    return parser.parse_args()


def peak_gib() -> float:
    """Most memory that this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def timed(rows: list[dict[str, object]], part: str) -> Iterator[None]:
    """Add a row with the seconds that a part took and the peak so far."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    rows.append({"part": part, "seconds": f"{seconds:.1f}", "peak GiB": f"{peak_gib():.2f}"})
    print(rows[-1], flush=True)


def main() -> None:
    """Prepare once, print the table, write the CSV."""
    options = arguments()
    rows: list[dict[str, object]] = []
    with timed(rows, "images (decoded or drawn)"):
        network, data = subject(options)
        _ = data.calibration, data.search
    start = time.perf_counter()
    with timed(rows, "trace, moments, removal paths, the original"):
        task = CompressionTask(
            Problem(network, data, None, Budget("macs", fraction=options.fraction))
        )
    with timed(rows, "errors of single decisions"):
        errors = task.errors
    with timed(rows, "the program's allocation"):
        strategy = knapsack_strategy(task.costs, errors)
    total = time.perf_counter() - start
    rows.append({"part": "all but the images", "seconds": f"{total:.1f}"})
    rows[-1]["peak GiB"] = f"{peak_gib():.2f}"
    if options.evaluate:
        with timed(rows, "then: the first candidate, what it aims at, its evaluation"):
            task.evaluate(strategy)
    rows = [{"network": options.network, **row, **provenance(0)} for row in rows]
    print_table(rows, ["network", "part", "seconds", "peak GiB", "threads"])
    size = f"-{options.synthetic}" if options.synthetic else ""
    print(write_csv(f"preparation-{options.network.replace('/', '-')}{size}", rows))


if __name__ == "__main__":
    main()
