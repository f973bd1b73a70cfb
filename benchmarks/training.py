"""What each part of a fine-tuning is worth, on few images and epochs.

    python -m benchmarks.training --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --images 5000 --epochs 2

Networks to start from: the integer program's strategy under half of the multiply-adds, and weights
of 4, 2 and 1 bits in all layers but the first and the last; each repaired, and then trained in
every way that makes a difference to it. The test split is tested before and after; of the epochs
the last counts, so that nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from amc.compress.network import CompressedNetwork
from amc.cost.budget import Budget
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.constraints import Constraints
from amc.recovery.training import TrainingSettings, train
from amc.strategy import Bits, Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.knapsack import knapsack_strategy

BASE = TrainingSettings(
    learning_rate=0.01,
    warmup_fraction=0.05,
    distillation_weight=0.7,
    augment=("flip", "crop"),
)
# What is printed -> what differs from the defaults of `amc finetune`.
WAYS: dict[str, dict[str, Any]] = {
    "as amc finetune does": {},
    "labels alone": {"distillation_weight": 0.0},
    "outputs alone": {"distillation_weight": 1.0},
    "and attention": {"distill": {"kd": 1.0, "at": 1000.0}},
    "and similarities": {"distill": {"kd": 1.0, "sp": 3000.0}},
    "averaged": {"average": 0.99},
    "BN anew": {"batch_norm_images": 2000},
    "learning rate 0.001": {"learning_rate": 0.001},
    "learning rate 0.003": {"learning_rate": 0.003},
    "learning rate 0.03": {"learning_rate": 0.03},
}
FIXED = {"steps fixed": {"learned_steps": False}}  # of few bits alone
POLISHED = "polished, no labels"


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--starts", nargs="+", default=["macs", "4", "2", "1"])
    parser.add_argument("--fraction", type=float, default=0.5, help="of the multiply-adds")
    parser.add_argument("--images", type=int, default=5000, help="to train on, of the training's")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--polish", type=int, default=3, help="passes; 0: no polish")
    parser.add_argument("--test-every", type=int, default=1, help="of the test images, one in N")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *FIXED], help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start_of(task: CompressionTask, name: str) -> Strategy:
    """A strategy by its name: "macs", or the bits of weights."""
    if name == "macs":
        return knapsack_strategy(task.costs, task.errors)
    inner = [layer.name for layer in task.graph.layers][1:-1]
    return Strategy({}, {layer: Bits(int(name), 32) for layer in inner})


def trained(
    task: CompressionTask, start: CompressedNetwork, settings: TrainingSettings, images: int
) -> nn.Module:
    """A copy of a network after its last epoch on some training images."""
    split = task.data.train
    chosen = split.take(torch.linspace(0, len(split) - 1, min(images, len(split))).long())
    module = copy.deepcopy(start.module).requires_grad_(True)
    result = train(
        module,
        chosen.images,
        chosen.labels,
        mean=task.data.mean,
        std=task.data.std,
        settings=settings,
        teacher=task.network,
        constraints=Constraints(module, start.strategy),
        description="fine-tuning",
    )
    return result.network


def ways_of(options: argparse.Namespace, start: str) -> Iterator[tuple[str, TrainingSettings]]:
    """The ways in which a start is trained."""
    known = WAYS if start == "macs" else WAYS | FIXED
    for name in options.ways or known:
        if name in known:
            yield name, replace(BASE, epochs=options.epochs, seed=options.seed, **known[name])


def main() -> None:
    """Train in every way, print the table, write the CSV."""
    options = arguments()
    network, data = subject(options)
    budget = Budget.of({"metric": "macs", "fraction": options.fraction})
    task = CompressionTask(Problem(network, data, None, budget))
    test = task.evaluator(data.test.take(torch.arange(0, len(data.test), options.test_every)))
    original = test(task.reference).scores["accuracy"]
    rows: list[dict[str, object]] = []

    def note(start: str, way: str, module: nn.Module, seconds: float) -> None:
        accuracy = test(module).scores["accuracy"]
        row: dict[str, object] = {
            "start": start if start == "macs" else f"{start} bits",
            "way": way,
            "test %": f"{100 * accuracy:.2f}",
            "points lost": f"{100 * (original - accuracy):.2f}",
            "s": f"{seconds:.0f}",
            "images": options.images,
            "epochs": options.epochs,
        }
        rows.append(row | provenance(options.seed))
        print(row, flush=True)

    for name in options.starts:
        strategy = start_of(task, name)
        begun = time.perf_counter()
        start = task.finish(strategy)
        note(name, "repaired", start.module, time.perf_counter() - begun)
        for way, settings in ways_of(options, name):
            begun = time.perf_counter()
            module = trained(task, start, settings, options.images)
            note(name, way, module, time.perf_counter() - begun)
        if options.polish:
            compressor = copy.copy(task.compressor)
            compressor.settings = replace(compressor.settings, polish=options.polish)
            begun = time.perf_counter()
            module = compressor.repair(strategy).module
            note(name, POLISHED, module, time.perf_counter() - begun)
    print_table(rows, ["start", "way", "images", "epochs", "test %", "points lost", "s"])
    print(write_csv(f"training-{options.network}", rows))


if __name__ == "__main__":
    main()
