"""How images lie in memory, and in which type, while a network runs on them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def fast_layout(
    network: nn.Module, image_shape: tuple[int, int, int], *, training: bool = False
) -> torch.memory_format:
    """Channels last, which CPUs convolve faster, wherever the network takes images so.

    A network that calls ``view`` across channels cannot.

    Args:
        network: Where it has a mode, it is tried in the one that it is in.
        training: Try it in training mode, and backwards; on a copy.
    """
    where = next((parameter.device for parameter in network.parameters()), None)
    # Made so, not converted: of one channel, what has the usual strides already counts as both.
    images = torch.empty(2, *image_shape, device=where, memory_format=torch.channels_last).zero_()
    try:
        if training:
            _try_training(copy.deepcopy(network).train(), images)
        else:
            with torch.inference_mode():
                network(images)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def _try_training(network: nn.Module, images: Tensor) -> None:
    on_gpu = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(on_gpu), torch.enable_grad():
        scores = network(images)
        if isinstance(scores, Tensor) and scores.requires_grad:
            scores.sum().backward()  # type: ignore[no-untyped-call]


def laid_out(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Images in a layout, (n, channels, height, width); a copy only where they are in another.

    In the usual one with its own strides: images of one channel may be contiguous with those of
    channels last, which operators then go by.
    """
    images = images.contiguous(memory_format=layout)
    if layout == torch.contiguous_format and images.stride() != _usual_strides(images):
        return images.clone(memory_format=layout)
    return images


def _usual_strides(images: Tensor) -> tuple[int, ...]:
    return torch.empty(images.shape, device="meta").stride()


def lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """Lay a network's weights of four dimensions out in memory; their values stay."""
    # `nn.Module.to` would try those of five dimensions too, which have no channels last.
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def computes_in_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, and not only stores it."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())
