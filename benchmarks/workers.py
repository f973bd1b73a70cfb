"""One search on so many workers: evaluations a minute, and whether all find the same.

    python -m benchmarks.workers --workers 0 1 2 --agent evolution
    python -m benchmarks.workers --network resnet56 --checkpoint file.safetensors --root cifar10 \\
        --search-every 10

Every search has as many strategies under way. All are on one thread (0 workers: in this
process, one after the other), so all must find the same to the bit. The network is prepared once;
starting the workers counts. In rounds, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch

from agents.searcher import build_searcher
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.problem.workers import PROCESSES, RAY, side_by_side
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.make import environment


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--on", choices=(PROCESSES, RAY), default=PROCESSES)
    parser.add_argument("--proposals", type=int, default=4)
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def search(task: CompressionTask, workers: int, options: argparse.Namespace) -> tuple[float, Any]:
    """Seconds that a search takes, and what it tried."""
    task._recalled.clear()  # what an earlier one evaluated
    begun = time.perf_counter()
    with side_by_side([task], workers, options.on) as foresee:
        env = environment(
            task,
            proposals=options.proposals,
            foresee=None if foresee is None else lambda some: foresee([(task, s) for s in some]),
        )
        agent = build_searcher(options.agent)
        found = agent.search(env, options.evaluations, options.seed, lambda _: True)
        seconds = time.perf_counter() - begun
    return seconds, [(trial.strategy, trial.reward) for trial in found.trials]


def main() -> None:
    """All rounds, the table, the CSV; exit code 1 if workers changed what is found."""
    options = arguments()
    torch.set_num_threads(1)
    network, data = subject(options)
    budget = {"metric": "macs", "fraction": options.fraction}
    task = CompressionTask(Problem(network, data, None, budget, search_images=options.images))
    environment(task).knapsack_strategies()  # prepared beforehand: errors, and the program's answer
    taken: dict[int, list[float]] = {count: [] for count in options.workers}
    tried: dict[int, Any] = {}
    for _ in range(options.rounds):
        for count, seconds in taken.items():
            found, tried[count] = search(task, count, options)
            seconds.append(found)
    first = options.workers[0]
    rows: list[dict[str, object]] = [
        {
            "network": options.network,
            "agent": options.agent,
            "workers": f"{count} {options.on}",
            "evaluations": options.evaluations,
            "at once": options.proposals,
            "a minute": f"{60 * options.evaluations / statistics.median(seconds):.1f}",
            f"times {first}": f"{_ratio(taken[first], seconds):.2f}",
            "trials": "same" if tried[count] == tried[first] else "DIFFERENT",
        }
        for count, seconds in taken.items()
    ]
    print_table(rows, list(rows[0]))
    name = f"workers-{options.network}-{options.on}-{options.agent}"
    print(write_csv(name, [row | provenance(options.seed) for row in rows]))
    sys.exit(any(row["trials"] != "same" for row in rows))


def _ratio(first: list[float], other: list[float]) -> float:
    """Median over rounds of how much sooner the other ended."""
    return statistics.median(a / b for a, b in zip(first, other, strict=True))


if __name__ == "__main__":
    main()
