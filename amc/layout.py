"""How images lie in memory, and in which type, while a network runs on them."""

from __future__ import annotations

import torch
from torch import nn


def fast_layout(network: nn.Module, image_shape: tuple[int, int, int]) -> torch.memory_format:
    """Channels last, which CPUs convolve faster, wherever the network takes images so.

    A network that calls ``view`` across channels cannot.
    """
    images = torch.zeros(2, *image_shape).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            network(images)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def computes_in_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, and not only stores it."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())
