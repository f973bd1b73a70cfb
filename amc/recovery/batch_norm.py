"""Batch normalisation statistics of a changed network (precise BN, Wu & Johnson 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BATCH = 256


def recalibrate(network: nn.Module, images: Tensor) -> None:
    """Replace every BN's running mean and variance by those of the given images, in place.

    Statistics of several batches are averaged with equal weight.

    Args:
        images: Normalised, (n, channels, height, width); n of at least 2.
    """
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        return
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.training = True
    try:
        with torch.no_grad():
            for batch in torch.split(images, BATCH):
                if len(batch) > 1:
                    network(batch)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training
