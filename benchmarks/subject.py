"""The trained network and the images that a benchmark is about, from its command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from amc.data import DataSet, build_data
from amc.networks import build_network, load_checkpoint
from amc.study.finetuning import train_base
from benchmarks import real_network, zoo

CLASSES = 10  # of synthetic images


def add_options(
    parser: argparse.ArgumentParser, network: str = "resnet20", *, synthetic: bool = False
) -> None:
    """Options that say which network and images.

    Args:
        synthetic: Whether random images and labels will do: where only time and memory count.
    """
    parser.add_argument("--network", default=network)
    parser.add_argument("--checkpoint", type=Path, help="default: trained on the digits")
    parser.add_argument("--root", type=Path, help="image folder; default: the embedded digits")
    parser.add_argument("--search-every", type=int)
    parser.add_argument("--calibration", type=int, help="images taken from the training split")
    parser.add_argument("--data-seed", type=int, default=0, help="of the choice of those")
    parser.set_defaults(synthetic=None)
    if synthetic:
        parser.add_argument("--synthetic", type=int, help="size of random images; none: real ones")
        parser.add_argument("--number", type=int, default=2000, help="how many random images")


def subject(options: argparse.Namespace) -> tuple[nn.Module, DataSet]:
    """The network with its weights, and the data."""
    if options.synthetic:
        return _synthetic(options)
    given = {"search_every": options.search_every, "calibration": options.calibration}
    chosen = {key: value for key, value in given.items() if value is not None}
    data: DataSet = (
        build_data("image_folder", root=options.root, seed=options.data_seed, **chosen)
        if options.root
        else build_data("digits", seed=options.data_seed, **chosen)
    )
    network = build_network(
        options.network, num_classes=data.num_classes, image_shape=data.image_shape
    )
    if options.checkpoint:
        load_checkpoint(network, options.checkpoint)
        return network, data
    return train_base(network, data, options.network), data


def build(name: str, shape: tuple[int, int, int]) -> nn.Module:
    """A network by its name, with random weights unless it is EfficientNet-lite0."""
    if name == "efficientnet_lite0":
        return real_network.build(shape[1])
    if name.partition("/")[0] in ("ultralytics", "facenet_pytorch"):  # no network of amc's
        return zoo.build(name)[0]
    return build_network(name, num_classes=CLASSES, image_shape=shape).eval()


def _synthetic(options: argparse.Namespace) -> tuple[nn.Module, DataSet]:
    """A network whose accuracy does not count, and random images."""
    draw = torch.Generator().manual_seed(0)
    shape = 3, options.synthetic, options.synthetic
    images = torch.randint(256, (options.number, *shape), generator=draw, dtype=torch.uint8)
    torch.manual_seed(0)
    network = build(options.network, shape)
    with torch.no_grad():
        given = network(torch.zeros(1, *shape))
    if not (isinstance(given, torch.Tensor) and given.dim() == 2):
        return network, DataSet.from_tensors(images)  # no class scores
    labels = torch.randint(given.shape[1], (options.number,), generator=draw)
    return network, DataSet.from_tensors(images, labels)
