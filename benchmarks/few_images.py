"""What each part of the repair is worth with few calibration images and with many.

    python -m benchmarks.few_images --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --images 64 256 1024
    python -m benchmarks.few_images --network benchmarks.few_images:mobilenet_v2 \\
        --checkpoint mobilenet_v2.pt --root cifar10 --search-every 10

The integer program's strategy under a budget, for each number of images; no gradient step.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from amc.cost.budget import Budget
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.repairs import Repaired, repaired
from benchmarks.subject import CLASSES, add_options, subject
from envs.knapsack import knapsack_strategy


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, "resnet20")
    parser.add_argument("--metric", default="macs")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--images", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--test-every", type=int, default=1, help="of the test images, one in N")
    return parser.parse_args()


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 for images of 32 pixels: its first layer has no stride."""
    from torchvision import models

    network: nn.Module = models.mobilenet_v2(num_classes=CLASSES, dropout=0.0)
    stem = network.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return network


def main() -> None:
    """Repair in every way, print the table, write the CSV."""
    options = arguments()
    rows: list[dict[str, object]] = []
    budget = Budget.of({"metric": options.metric, "fraction": options.fraction})
    for images in options.images:
        options.calibration = images
        network, data = subject(options)
        task = CompressionTask(Problem(network, data, None, budget))
        compressor = task.compressor
        errors = compressor.errors(task.costs.choices)
        strategy = knapsack_strategy(task.costs, errors)
        test = data.test.take(torch.arange(0, len(data.test), options.test_every))
        evaluator = task.evaluator(test)
        original = Repaired("the original", task.reference, "", 0.0)
        for found in (original, *repaired(compressor, strategy)):
            row = {"images": images, **found.row(evaluator), **provenance(0)}
            rows.append(row)
            print(row, flush=True)
    print_table(rows, ["images", "repair", "test %", "agreement", "repair s"])
    name = options.network.rpartition(":")[2]
    print(write_csv(f"few_images-{name}-{options.metric}-{options.fraction}", rows))


if __name__ == "__main__":
    main()
