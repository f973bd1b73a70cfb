"""What each part of the repair is worth: one strategy, repaired in ever more ways.

    python -m benchmarks.repair --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

No gradient step anywhere. Uniform and integer-program allocation under the same budget.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from amc.cost.budget import Budget
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.strategy import Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.knapsack import knapsack_strategy
from envs.uniform import uniform_strategies

FULL = RecoverySettings()
MATCHED = replace(FULL, rectified=False)  # aims at what a ReLU throws away too
SLICED = replace(FULL, least_squares=False, batch_norm=False)
# What is printed -> settings; the last is what amc does.
REPAIRS: dict[str, RecoverySettings] = {
    "magnitude, none": replace(SLICED, importance="magnitude"),
    "magnitude, BN recalibration": replace(SLICED, importance="magnitude", batch_norm=True),
    "magnitude, least squares": replace(
        FULL, importance="magnitude", batch_norm=False, sequential=False
    ),
    "magnitude, least squares, BN": replace(FULL, importance="magnitude", sequential=False),
    "surgeon, least squares, BN": replace(FULL, sequential=False),
    "magnitude, sequential": replace(MATCHED, importance="magnitude", stream_correction=False),
    "surgeon, sequential": replace(MATCHED, stream_correction=False),
    "magnitude, sequential, stream-corrected": replace(MATCHED, importance="magnitude"),
    "surgeon, sequential, stream-corrected": MATCHED,
    "magnitude, sequential, stream-corrected, rectified": replace(FULL, importance="magnitude"),
    "surgeon, sequential, stream-corrected, rectified": FULL,
}


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--metric", default="macs")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=FULL.images, help="for calibration")
    return parser.parse_args()


def main() -> None:
    """Repair in every way, print the table, write the CSV."""
    options = arguments()
    network, data = subject(options)
    budget = Budget.of({"metric": options.metric, "fraction": options.fraction})
    rows: list[dict[str, object]] = []
    allocations: dict[str, Strategy] = {}
    for name, settings in reversed(REPAIRS.items()):
        settings = replace(settings, images=options.images)
        task = CompressionTask(Problem(network, data, None, budget, recovery=settings))
        if not allocations:  # both from the full repair's estimates, the same for all
            allocations["uniform"] = uniform_strategies(task.costs)[0]
            allocations["program"] = knapsack_strategy(task.costs, task.errors)
        search, test = task.evaluator(data.search), task.evaluator(data.test)
        original = test(task.reference).scores["accuracy"]
        for allocation, strategy in allocations.items():
            start = time.perf_counter()
            module = task.finish(strategy).module
            seconds = time.perf_counter() - start
            accuracy = test(module).scores["accuracy"]
            row: dict[str, object] = {
                "repair": name,
                "allocation": allocation,
                "search %": f"{100 * search(module).scores['accuracy']:.2f}",
                "test %": f"{100 * accuracy:.2f}",
                "test drop": f"{100 * (original - accuracy):.2f}",
                "repair s": f"{seconds:.1f}",
                "images": options.images,
            }
            rows.append(row | provenance(0))
            print(row, flush=True)
    shown = ["repair", "allocation", "images", "search %", "test %", "test drop", "repair s"]
    rows.reverse()
    print_table(rows, shown)
    print(write_csv(f"repair-{options.network}-{options.metric}-{options.fraction}", rows))


if __name__ == "__main__":
    main()
