"""Where an episode's wall time goes, beside evaluating the full-size network on the same images.

    python -m benchmarks.episode --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --images 1000 5000
    python -m benchmarks.episode --network mobilenet_v1 --synthetic 32 --number 30000 \\
        --images 1000 5000
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import amc.problem.candidate
import amc.problem.task
from agents.searcher import build_searcher
from amc.cost.budget import Budget
from amc.problem.candidate import Compressor
from amc.problem.evaluate import Evaluator
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.refit import MomentRefit
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.make import environment
from envs.reward import DEFAULT_REWARD

# Part of an episode -> (what holds the function, its name); parts do not contain one another.
PARTS: dict[str, tuple[Any, str]] = {
    "refit": (MomentRefit, "all"),
    "slice": (amc.problem.candidate, "remove_channels"),
    "quantize": (Compressor, "_decide"),
    "repair": (amc.problem.candidate, "refit_layers"),
    "recalibrate": (Compressor, "_recalibrate"),
    "fold": (amc.problem.task, "fold_batch_norm"),
    "evaluate": (Evaluator, "__call__"),
}


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, synthetic=True)
    parser.add_argument("--metric", default="macs")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--images", type=int, nargs="+", default=[1000])
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--episodes", type=int, default=30)
    return parser.parse_args()


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Seconds spent in each of `PARTS` since it was last cleared."""
    spent: dict[str, float] = defaultdict(float)
    before = {part: getattr(holder, name) for part, (holder, name) in PARTS.items()}

    def wrapped(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - start

        return call

    for part, (holder, name) in PARTS.items():
        setattr(holder, name, wrapped(part, before[part]))
    try:
        yield spent
    finally:
        for part, (holder, name) in PARTS.items():
            setattr(holder, name, before[part])


def measure(task: CompressionTask, agent: str, episodes: int, images: int) -> dict[str, object]:
    """Median seconds of the parts over the learning episodes, the full-size network in turn."""
    env = environment(task, DEFAULT_REWARD)
    full: list[float] = []
    parts: list[dict[str, float]] = []
    walls: list[float] = []
    full_size = task.evaluator(task._subset)
    with timed_parts() as spent:
        last = time.perf_counter()

        def on_trial(trial: Any) -> bool:
            nonlocal last
            walls.append(time.perf_counter() - last)
            agent_s = trial.diagnostics.get("agent_seconds", 0.0)
            parts.append(dict(spent) | {"agent": agent_s})
            start = time.perf_counter()
            full_size(task.reference)
            full.append(time.perf_counter() - start)
            spent.clear()
            last = time.perf_counter()
            return True

        build_searcher(agent).search(env, episodes, 0, on_trial)
    learning = range(episodes // 2, episodes)  # the warm-up is over
    medians = {
        part: float(np.median([parts[i].get(part, 0.0) for i in learning]))
        for part in (*PARTS, "agent")
    }
    wall = float(np.median([walls[i] for i in learning]))
    return {
        "images": images,
        "episode s": f"{wall:.3f}",
        **{f"{part} s": f"{value:.3f}" for part, value in medians.items()},
        "full-size s": f"{np.median(full):.3f}",
        "episode / full-size": f"{np.median([walls[i] / full[i] for i in learning]):.2f}",
    }


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    network, data = subject(options)
    budget = Budget.of({"metric": options.metric, "fraction": options.fraction})
    rows: list[dict[str, object]] = []
    for images in options.images:
        task = CompressionTask(Problem(network, data, None, budget, search_images=images))
        row = measure(task, options.agent, options.episodes, images)
        rows.append({"network": options.network} | row | provenance(0))
    shown = [column for column in rows[0] if column == "network" or column.endswith((" s", "size"))]
    print_table(rows, ["images", *shown])
    print(write_csv(f"episode-{options.network.replace('/', '-')}", rows))


if __name__ == "__main__":
    main()
