"""The trained network and the images that a benchmark is about, from its command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from amc.api import train_base
from amc.data import DataSet, build_data
from amc.networks import build_network, load_checkpoint


def add_options(parser: argparse.ArgumentParser, network: str = "resnet20") -> None:
    """Options that say which network and images."""
    parser.add_argument("--network", default=network)
    parser.add_argument("--checkpoint", type=Path, help="default: trained on the digits")
    parser.add_argument("--root", type=Path, help="image folder; default: the embedded digits")
    parser.add_argument("--search-every", type=int)
    parser.add_argument("--calibration", type=int, help="images taken from the training split")


def subject(options: argparse.Namespace) -> tuple[nn.Module, DataSet]:
    """The network with its weights, and the data."""
    given = {"search_every": options.search_every, "calibration": options.calibration}
    chosen = {key: value for key, value in given.items() if value is not None}
    data: DataSet = (
        build_data("image_folder", root=options.root, **chosen)
        if options.root
        else build_data("digits", **chosen)
    )
    network = build_network(
        options.network, num_classes=data.num_classes, image_shape=data.image_shape
    )
    if options.checkpoint:
        load_checkpoint(network, options.checkpoint)
        return network, data
    return train_base(network, data, options.network), data
