"""Searches over seeds, as test accuracy beside the original's and the uniform strategy's.

    python -m benchmarks.search --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --metric macs --fraction 0.5 --seeds 0 1 2

Without --root: ResNet-20 on the embedded digits.
"""

from __future__ import annotations

import argparse

from amc.api import search
from amc.problem.space import SearchSpace
from amc.study.result import SearchResult
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.reward import DEFAULT_REWARD


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--device", default="onnxruntime_cpu")
    parser.add_argument("--metric", default="latency_ms")
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--blocks", action="store_true", help="residual blocks may go")
    parser.add_argument("--reward", default=DEFAULT_REWARD)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser.parse_args()


def rows_of(result: SearchResult, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for the original, the uniform strategy and the best found."""
    original = result.comparison[0]
    rows: list[dict[str, object]] = []
    for row in result.comparison:
        rows.append(
            {
                "network": options.network,
                "budget": f"{options.metric} {options.fraction}",
                "device": options.device,
                "agent": options.agent,
                "evaluations": len(result.trials),
                "row": row.name,
                "test accuracy %": f"{100 * row.test['accuracy']:.2f}",
                "drop": f"{100 * (original.test['accuracy'] - row.test['accuracy']):.2f}",
                "macs": row.macs,
                "predicted_ms": row.predicted_ms,
                "measured_ms": row.measured_ms,
            }
        )
    return rows


def main() -> None:
    """Search once for each seed, print the table, write the CSV."""
    options = arguments()
    rows: list[dict[str, object]] = []
    network, data = subject(options)
    for seed in options.seeds:
        result = search(
            network,
            data,
            options.device,
            {"metric": options.metric, "fraction": options.fraction},
            agent=options.agent,
            evaluations=options.evaluations,
            reward=options.reward,
            seed=seed,
            space=SearchSpace(drop_blocks=options.blocks),
        )
        rows += [row | provenance(seed) for row in rows_of(result, options)]
    shown = ["network", "budget", "agent", "evaluations", "seed", "row", "test accuracy %", "drop"]
    print_table(rows, shown)
    blocks = "-blocks" if options.blocks else ""
    name = f"search-{options.network}-{options.metric}-{options.fraction}{blocks}"
    print(write_csv(name, rows))


if __name__ == "__main__":
    main()
