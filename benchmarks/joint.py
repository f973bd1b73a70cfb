"""Ratio and bits chosen together, beside either alone and beside the program: one latency budget.

    python -m benchmarks.joint --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --seeds 0 1 2

On a device whose price falls with every bit. "ratio only" computes in one precision throughout,
once in each of --ratio-bits; where that leaves nothing to reach the budget with, the row says so.
"""

from __future__ import annotations

import argparse
from statistics import fmean

from amc.api import search
from amc.errors import BudgetError
from amc.problem.space import SearchSpace
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, "resnet56")
    parser.add_argument("--device", default="roofline_edge")
    parser.add_argument("--metric", default="latency_ms")
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--ratio-bits", type=int, nargs="*", default=[32, 8])
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--final-candidates", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser.parse_args()


def ways(options: argparse.Namespace) -> dict[str, tuple[str, SearchSpace]]:
    """What is printed -> agent and space."""
    joint = SearchSpace()
    found = {
        "ratio and bits": (options.agent, joint),
        "ratio and bits, by the program": ("program", joint),
        "bits only": (options.agent, SearchSpace(min_preserve_ratio=1.0)),
    }
    for bits in options.ratio_bits:
        space = SearchSpace(weight_bits=(bits,), activation_bits=(bits,))
        found[f"ratio only, in {bits} bits"] = options.agent, space
    return found


def main() -> None:
    """Search in every space for every seed, print the means, write the CSV."""
    options = arguments()
    network, data = subject(options)
    rows: list[dict[str, object]] = []
    drops: dict[str, list[float]] = {name: [] for name in ways(options)}
    for name, (agent, space) in ways(options).items():
        seeds = options.seeds[:1] if agent == "program" else options.seeds  # draws nothing
        for seed in seeds:
            try:
                result = search(
                    network,
                    data,
                    options.device,
                    {"metric": options.metric, "fraction": options.fraction},
                    agent=agent,
                    evaluations=options.evaluations,
                    seed=seed,
                    space=space,
                    final_candidates=options.final_candidates,
                )
            except BudgetError as error:
                print(f"{name}: {error}", flush=True)
                rows.append({"space": name, "test %": "cannot reach it"} | provenance(seed))
                break
            original, best = result.comparison[0], result.comparison[-1]
            drops[name].append(100 * (original.test["accuracy"] - best.test["accuracy"]))
            row = {
                "space": name,
                "agent": agent,
                "evaluations": len(result.trials),
                "best reward": f"{max(trial.reward for trial in result.trials):.4f}",
                "test %": f"{100 * best.test['accuracy']:.2f}",
                "drop": f"{drops[name][-1]:.2f}",
                "cost": f"{best.predicted_ms}",
            }
            rows.append(row | provenance(seed))
            print(row, flush=True)
    shown = ["space", "seed", "evaluations", "best reward", "test %", "drop"]
    print_table(rows, shown)
    for name, found in drops.items():
        if found:
            print(f"{name}: mean drop {fmean(found):.2f} points over {len(found)} seeds")
    print(write_csv(f"joint-{options.network}-{options.metric}-{options.fraction}", rows))


if __name__ == "__main__":
    main()
