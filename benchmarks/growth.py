"""How the cost of a search grows: with layers, width, image size, and evaluations.

    python -m benchmarks.growth
    python -m benchmarks.growth --depths 20 56 110 200 --widths 0.5 1 2 4 --sizes 32 64 128

CIFAR ResNets of random weights on random images, each in a process of its own, on one thread:
seconds of a core until the first strategy can be tried, and of an episode; most memory held. Then
what an agent itself takes with ever more evaluations behind it: its walks on ResNet-20, where the
evaluation is made up and takes no time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import torch

from agents.searcher import build_searcher
from agents.trial import Trial
from amc.data import DataSet
from amc.networks import resnet
from amc.problem.evaluate import Evaluation
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.strategy import Strategy
from benchmarks.preparation import peak_gib
from benchmarks.provenance import print_table, provenance, write_csv
from envs.compression import CompressionEnv
from envs.make import environment

BUDGET = {"metric": "macs", "fraction": 0.5}
CLASSES, NUMBER, SEARCH_IMAGES = 10, 2000, 256


@dataclass(frozen=True)
class Size:
    """A network and its images."""

    depth: int = 20
    width: float = 1.0
    image: int = 32


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--depths", type=int, nargs="*", default=[20, 56, 110, 200])
    parser.add_argument("--widths", type=float, nargs="*", default=[0.5, 1, 2, 4])
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 128])
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--agents", nargs="*", default=["ddpg", "evolution", "gp"])
    parser.add_argument("--evaluations", type=int, nargs="*", default=[100, 200, 400, 800])
    return parser.parse_args()


def task_of(size: Size) -> CompressionTask:
    """A network of random weights, prepared."""
    resnet.STAGE_CHANNELS = tuple(round(size.width * c) for c in (16, 32, 64))  # type: ignore[assignment]
    shape = 3, size.image, size.image
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (NUMBER, *shape), generator=draw, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (NUMBER,), generator=draw)
    torch.manual_seed(0)
    network = resnet.cifar_resnet(depth=size.depth, num_classes=CLASSES, image_shape=shape)
    data = DataSet.from_tensors(images, labels)
    problem = Problem(network.eval(), data, None, BUDGET, search_images=SEARCH_IMAGES)
    return CompressionTask(problem)


def grown(size: Size, episodes: int) -> dict[str, object]:
    """What a search of a network takes."""
    torch.set_num_threads(1)
    begun = time.process_time()
    task = task_of(size)
    prepared = time.process_time()
    assert task.errors
    known = time.process_time()
    env, ends = environment(task), [time.process_time()]

    def on_trial(trial: Trial) -> bool:
        ends.append(time.process_time())
        return True

    build_searcher("random").search(env, episodes + 1, 0, on_trial)
    taken = [b - a for a, b in pairwise(ends[1:])]  # the first gathers its aims
    return {
        "layers": len(task.graph.layers),
        "width": size.width,
        "image": size.image,
        "prepared s": f"{prepared - begun:.1f}",
        "errors s": f"{known - prepared:.1f}",
        "episode s": f"{statistics.median(taken):.2f}",
        "peak GiB": f"{peak_gib():.2f}",
    }


def agent_seconds(agent: str, marks: Sequence[int]) -> list[dict[str, object]]:
    """Seconds that an agent takes for a walk, at some numbers of evaluations."""
    torch.set_num_threads(1)
    task = task_of(Size())
    original, errors = task.original, task.errors

    def made_up(strategy: Strategy) -> Evaluation:
        kept, options = task.costs.encode(strategy)
        lost = sum(float(errors.removal[group][count]) for group, count in enumerate(kept))
        lost += sum(float(row[option]) for row, option in zip(errors.options, options, strict=True))
        return Evaluation({**original.scores, "agreement": -lost})

    env = CompressionEnv(task.costs, made_up, original, errors=lambda: errors)
    ends = [time.process_time()]

    def on_trial(trial: Trial) -> bool:
        ends.append(time.process_time())
        return True

    build_searcher(agent).search(env, max(marks), 0, on_trial)
    last = [
        statistics.median(
            b - a for a, b in zip(ends[m - 20 : m], ends[m - 19 : m + 1], strict=True)
        )
        for m in marks
    ]
    return [
        {
            "agent": agent,
            "evaluations": mark,
            "a walk s": f"{seconds:.3f}",
            "peak GiB": f"{peak_gib():.2f}",
        }
        for mark, seconds in zip(marks, last, strict=True)
    ]


def main() -> None:
    """Every size, every agent; the tables, the CSVs."""
    options = arguments()
    sizes = [
        *(Size(depth=depth) for depth in options.depths),
        *(Size(width=width) for width in options.widths),
        *(Size(image=image) for image in options.sizes),
    ]
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        rows = [
            pool.submit(grown, size, options.episodes).result() for size in dict.fromkeys(sizes)
        ]
        if rows:
            print_table(rows, list(rows[0]))
            print(write_csv("growth", [row | provenance(0) for row in rows]))
        found = [
            row
            for agent in options.agents
            for row in pool.submit(agent_seconds, agent, options.evaluations).result()
        ]
    if found:
        print_table(found, list(found[0]))
        print(write_csv("growth-agents", [row | provenance(0) for row in found]))


if __name__ == "__main__":
    main()
