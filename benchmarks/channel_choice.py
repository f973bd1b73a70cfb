"""What the choice of channels is worth under the same repair and the same counts.

    python -m benchmarks.channel_choice --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

Uniform ratios, and the counts that the integer program gives by the surgeon's errors; the counts
are the same in every row, and which channels stay differs. No gradient step anywhere.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from amc.cost.budget import Budget
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.settings import IMPORTANCES, RecoverySettings
from amc.strategy import Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.knapsack import knapsack_strategy
from envs.uniform import uniform_strategies

ALLOCATIONS = ("uniform", "program")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--metric", default="macs")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--importances", nargs="+", default=list(IMPORTANCES))
    parser.add_argument("--allocations", nargs="+", default=ALLOCATIONS, choices=ALLOCATIONS)
    parser.add_argument("--quick", action="store_true", help="the repair of a search's candidates")
    return parser.parse_args()


def main() -> None:
    """Choose in every way, print the table, write the CSV."""
    options = arguments()
    network, data = subject(options)
    budget = Budget.of({"metric": options.metric, "fraction": options.fraction})
    rows: list[dict[str, object]] = []
    allocations: dict[str, Strategy] = {}
    original = 0.0
    for name in dict.fromkeys(["surgeon", *options.importances]):
        settings = replace(RecoverySettings(), importance=name)
        start = time.perf_counter()
        task = CompressionTask(Problem(network, data, None, budget, recovery=settings))
        seconds = time.perf_counter() - start
        test = task.evaluator(data.test)
        if not allocations:
            found = (
                uniform_strategies(task.costs)[0],
                knapsack_strategy(task.costs, task.errors),
            )
            named = dict(zip(ALLOCATIONS, found, strict=True))
            allocations = {allocation: named[allocation] for allocation in options.allocations}
            original = test(task.reference).scores["accuracy"]
        for allocation, strategy in allocations.items():
            made = task.compressor.apply(strategy) if options.quick else task.finish(strategy)
            accuracy = test(made.module).scores["accuracy"]
            row: dict[str, object] = {
                "channels by": name,
                "allocation": allocation,
                "repair": "quick" if options.quick else "full",
                "test %": f"{100 * accuracy:.2f}",
                "test drop": f"{100 * (original - accuracy):.2f}",
                "prepared s": f"{seconds:.1f}",
            }
            rows.append(row | provenance(0))
            print(row, flush=True)
            path = write_csv(
                f"channel_choice-{options.network}-{options.metric}-{options.fraction}", rows
            )
    print_table(rows, [key for key in rows[0] if key not in provenance(0)])
    print(path)


if __name__ == "__main__":
    main()
