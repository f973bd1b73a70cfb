"""Batch normalisation statistics of a changed network (precise BN, Wu & Johnson 2021)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.layers.norms import is_batch_norm

BATCH = 256


@dataclass(frozen=True)
class Drift:
    """How a normalisation's trained statistics differ from those of some images.

    Attributes:
        shift: Trained mean less the images', shape (channels,).
        ratio: Trained variance / the images', shape (channels,).
    """

    shift: Tensor
    ratio: Tensor


def drifts(network: nn.Module, images: Tensor) -> dict[str, Drift]:
    """For every normalisation, what the images do not know of its trained statistics.

    They come from many augmented images, those of a few hundred are off: put upon recalibrated
    statistics of the same images, the drift makes an unchanged network come out unchanged.

    Args:
        images: As for `recalibrate`.
    """
    seen = copy.deepcopy(network)
    recalibrate(seen, images)
    found = {}
    for path, module in network.named_modules():
        if is_batch_norm(module) and module.running_mean is not None:
            other = seen.get_submodule(path)
            assert is_batch_norm(other)
            assert module.running_var is not None
            assert other.running_mean is not None
            assert other.running_var is not None
            ratio = (module.running_var + module.eps) / (other.running_var + module.eps)
            found[path] = Drift(module.running_mean - other.running_mean, ratio)
    return found


def add_drift(network: nn.Module, known: Mapping[str, Drift], kept: Mapping[str, Tensor]) -> None:
    """Put the drift upon recalibrated statistics, in place.

    Args:
        kept: Normalisation path -> positions of the channels that it has left.
    """
    there = {path for path, _ in network.named_modules()}
    for path, drift in known.items():
        if path not in there:  # its block is gone
            continue
        norm = network.get_submodule(path)
        assert is_batch_norm(norm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        channels = kept.get(path, slice(None))
        norm.running_mean += drift.shift[channels]
        norm.running_var += norm.eps
        norm.running_var *= drift.ratio[channels]
        norm.running_var -= norm.eps


def recalibrate(network: nn.Module, images: Tensor) -> None:
    """Replace every BN's running mean and variance by those of the given images, in place.

    Statistics of several batches are averaged with equal weight.

    Args:
        images: Normalised, (n, channels, height, width); n of at least 2.
    """
    norms = [module for module in network.modules() if is_batch_norm(module)]
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
