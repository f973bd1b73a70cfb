"""What a policy learned on other networks is worth: with no evaluation, and with a few.

    python -m benchmarks.transfer --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --budgets macs:0.5 macs:0.35 --evaluations 25 200

Rows: the knapsack by errors as they are estimated (program), by errors as the policy corrects them
(policy), the best of the policy's strengths (applied), searches with the policy as prior and
without, after so many evaluations, and rivals after the most of them. Rewards are of the search
split; the part of the way is from the knapsack's reward (0) to that of the longest search without
a prior (1), the mean over seeds. With --test networks are repaired and judged on the test split.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from torch import nn

from agents.policies import load_policy
from agents.searcher import build_searcher
from agents.trial import Trial
from agents.trust import TrustPolicy
from amc.data import DataSet
from amc.problem.problem import Problem
from amc.problem.store import open_store
from amc.problem.task import CompressionTask
from amc.strategy import Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.compression import CompressionEnv
from envs.make import environment

Found = tuple[str, int, int, float, Strategy]  # row, evaluations, seed, reward, strategy


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--device", default="none", help="none: the budgets need none")
    parser.add_argument("--budgets", nargs="+", default=["macs:0.5"], help="metric:fraction ...")
    parser.add_argument("--policy", default="shipped")
    parser.add_argument("--evaluations", type=int, nargs="*", default=[25, 200])
    parser.add_argument("--without", type=int, nargs="*", help="of searches without prior")
    parser.add_argument("--rivals", nargs="*", default=[], help="agents, after the most of them")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of searches")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--name", default="", help="of the network in the rows and the CSV")
    parser.add_argument("--store", type=Path, help="default: the user's")
    return parser.parse_args()


def best_after(trials: list[Trial], evaluations: int) -> Trial:
    """The best of the first evaluations that meets the budget."""
    within = [trial for trial in trials[:evaluations] if trial.meets_budget]
    return max(within, key=lambda trial: trial.reward)


def rows_of(env: CompressionEnv, policy: TrustPolicy, options: argparse.Namespace) -> list[Found]:
    """Every row's strategy and reward."""
    walks = [policy.walk(env, strength) for strength in policy.strengths]
    program, corrected = walks[-1], walks[0]
    applied = max(walks, key=lambda trial: trial.reward)
    found = [
        ("program", 0, 0, program.reward, program.strategy),
        ("policy", 0, 0, corrected.reward, corrected.strategy),
        ("applied", len(walks), 0, applied.reward, applied.strategy),
    ]
    without = options.evaluations if options.without is None else options.without
    searches = [
        ("with prior", {"name": "ddpg", "prior": options.policy}, options.evaluations),
        ("without", {"name": "ddpg", "prior": "none"}, without),
        *((name, {"name": name}, options.evaluations[-1:]) for name in options.rivals),
    ]
    for row, settings, counts in searches:
        for count, seed in itertools.product(counts, options.seeds):
            # one search of each length: warm-up and noise go by it
            searcher = build_searcher(**settings)
            trials = searcher.search(env, count, seed, lambda _: True).trials
            best = best_after(trials, count)
            found.append((row, count, seed, best.reward, best.strategy))
    return found


def prepared(
    network: nn.Module, data: DataSet, metric: str, options: argparse.Namespace
) -> tuple[CompressionTask, float]:
    """What all budgets of a metric share, under the loosest of them, and its seconds."""
    budgets = [text.partition(":") for text in options.budgets]
    loosest = max(float(fraction) for name, _, fraction in budgets if name == metric)
    device = None if options.device == "none" else options.device
    budget = {"metric": metric, "fraction": loosest}
    problem = Problem(network, data, device, budget, search_images=options.images)
    begun = time.perf_counter()
    task = CompressionTask(problem, open_store(options.store or True))
    environment(task).check_informed("a prior")
    return task, time.perf_counter() - begun


def main() -> None:
    """Run every row under every budget, print the table, write the CSV."""
    options = arguments()
    network, data = subject(options)
    policy = load_policy(options.policy)
    assert isinstance(policy, TrustPolicy), (
        "a policy of a search decides; this is about corrections"
    )
    name, rows = options.name or options.network, []
    tasks: dict[str, tuple[CompressionTask, float]] = {}  # of a metric, and its seconds
    for text in options.budgets:
        metric, _, fraction = text.partition(":")
        if metric not in tasks:
            tasks[metric] = prepared(network, data, metric, options)
        task, seconds = tasks[metric]
        bound = min(float(fraction) * task.costs.original, task.costs.bound)
        env = environment(task, costs=task.costs.tightened(bound))
        begun = time.perf_counter()
        policy.walk(env)
        applied = time.perf_counter() - begun
        found = rows_of(env, policy, options)
        program = found[0][3]
        alone = [(count, reward) for row, count, _, reward, _ in found if row == "without"]
        longest = max((count for count, _ in alone), default=0)
        reached = float(np.mean([reward for count, reward in alone if count == longest] or [0.0]))
        test = task.evaluator(data.test) if options.test else None
        for row, count, seed, reward, strategy in found:
            way = "" if not longest else (reward - program) / (reached - program or 1e-12)
            scores = test(task.finish(strategy).module).scores if test else {}
            rows.append(
                {
                    "network": name,
                    "budget": text,
                    "device": options.device,
                    "row": row,
                    "evaluations": count,
                    "reward": round(reward, 5),
                    "part of the way": way if way == "" else round(float(way), 3),
                    "search accuracy %": round(
                        100 * task.evaluate(strategy).scores.get("accuracy", float("nan")), 2
                    ),
                    "test accuracy %": round(100 * scores["accuracy"], 2) if scores else "",
                    "prepared s": round(seconds, 1),
                    "applied s": round(applied, 1),
                    **provenance(seed),
                }
            )
        shown = [
            "network", "budget", "row", "evaluations", "seed", "reward", "part of the way",
            "search accuracy %", "test accuracy %",
        ]  # fmt: skip
        print_table(rows, shown)
    label = f"{Path(name.replace(':', '.')).name}-{options.device}"
    print(write_csv(f"transfer-{label}", rows))


if __name__ == "__main__":
    main()
