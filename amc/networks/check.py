"""Whether a network and the images it is to classify fit each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc.errors import NetworkError


def check_network(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Run one black and one noise image through the network, which is left as it was.

    Returns:
        The number of classes that it scores.

    Raises:
        NetworkError: It rejects images of this shape, or its output is not finite or not of
            shape (2, classes).
    """
    output = run_images(network, image_shape)
    name, shape = type(network).__name__, "x".join(map(str, image_shape))
    if not isinstance(output, Tensor):
        raise NetworkError(
            f"{name} must return one tensor (images, classes), it returned "
            f"{type(output).__name__}. Switch off auxiliary outputs in network.options."
        )
    if output.dim() != 2 or len(output) != 2:
        raise NetworkError(
            f"{name} must return a tensor of shape (2, classes) for two images of {shape}, "
            f"got {tuple(output.shape)}. amc compresses classifiers."
        )
    if not bool(torch.isfinite(output).all()):
        raise NetworkError(
            f"{name} returns NaN or infinity for images of {shape}. Check its checkpoint."
        )
    return output.shape[1]


def run_images(network: nn.Module, image_shape: tuple[int, int, int]) -> object:
    """What a network, left as it was, gives for one black and one noise image.

    Raises:
        NetworkError: It rejects images of this shape.
    """
    first = next(network.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    noise = torch.randn(image_shape, generator=torch.Generator().manual_seed(0))
    images = torch.stack([torch.zeros(image_shape), noise]).to(device)
    return _eval_forward(network, images)


def _eval_forward(network: nn.Module, images: Tensor) -> object:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            output: object = network(images)
    except Exception as cause:
        shape = "x".join(map(str, images.shape[1:]))
        raise NetworkError(
            f"{type(network).__name__} does not accept images of {shape} (channels x height x "
            f"width): {cause}. Set data.image_size and data.channels to what it was built for."
        ) from cause
    finally:
        for module, training in modes:
            module.training = training
    return output
