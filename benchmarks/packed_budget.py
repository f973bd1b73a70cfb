"""Packed bytes as they are predicted along a walk, beside the file's.

    python -m benchmarks.packed_budget --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

Uniform bits with and without fewer channels, and random strategies within budgets; each is repaired
as a search's finalists are, and written. Predicted is what the search's prices say.
"""

from __future__ import annotations

import argparse

import numpy as np

from agents.episode import choose_at_random, run_episode
from amc.cost.budget import Budget
from amc.errors import UnreachableBudgetError
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.task import CompressionTask
from amc.strategy import FLOAT_BITS, Bits, Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.make import environment

COLUMNS = ["strategy", "predicted_bytes", "file_bytes", "difference", "shares"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--decisions", nargs="*", default=[], help="package.module:Class ...")
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.1, 0.2, 0.35])
    parser.add_argument("--random", type=int, default=3, help="strategies for each fraction")
    parser.add_argument("--quick", action="store_true", help="repaired as candidates are")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network, data = subject(options)
    space = SearchSpace(channel_step=1, decisions=tuple(options.decisions))
    rows: list[dict[str, object]] = []

    def task_of(fraction: float) -> CompressionTask:
        return CompressionTask(
            Problem(network, data, None, Budget("packed_bytes", fraction=fraction), space=space)
        )

    def add(task: CompressionTask, name: str, strategy: Strategy) -> None:
        predicted = task.strategy_costs(strategy)["packed_bytes"]
        make = task.compressor.apply if options.quick else task.finish
        found = task.file_bytes(make(strategy))
        assert found is not None
        rows.append(
            {
                "network": options.network,
                "strategy": name,
                "predicted_bytes": round(predicted),
                "file_bytes": found,
                "difference": f"{found / predicted - 1:+.4f}",
                "shares": f"{found / task.costs.original:.3f}",
            }
        )
        print(rows[-1], flush=True)

    task = task_of(0.9)
    layers = [layer.name for layer in task.graph.layers]
    for width in (FLOAT_BITS, 8, 6, 4, 3, 2):
        for ratio in (1.0, 0.5):
            ratios = {group.name: ratio for group in task.graph.free_groups}
            bits = dict.fromkeys(layers, Bits(width, FLOAT_BITS))
            add(task, f"{width} bits, {ratio:g} of the channels", Strategy(ratios, bits))
    rng = np.random.default_rng(options.seed)
    for fraction in options.fractions:
        try:
            task = task_of(fraction)
        except UnreachableBudgetError as error:
            print(error)
            continue
        env = environment(task, "agreement")
        choose = choose_at_random(rng, len(env.action_names))
        for number in range(options.random):
            strategy = run_episode(env, choose).trial.strategy
            add(task, f"random {number} at {fraction:g}", strategy)
    print_table(rows, COLUMNS)
    stem = f"packed_budget-{options.network}"
    print(write_csv(stem, [row | provenance(options.seed) for row in rows]))


if __name__ == "__main__":
    main()
