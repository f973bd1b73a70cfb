"""Whether a network, the images that it is given, and what it is for fit each other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amc.errors import NetworkError
from amc.objectives import DEFAULT, Objective, accepts
from amc.objectives.outputs import (
    Outputs,
    finite_images,
    named_tensors,
    outputs_of,
    shapes_of,
)

# Raised by code that is wrong whatever the images' sizes.
_CODE_ERRORS = (TypeError, AttributeError, LookupError, NameError, ImportError, NotImplementedError)


def check_network(
    network: nn.Module, image_shape: tuple[int, int, int], objective: Objective | None = DEFAULT
) -> Outputs:
    """Run one black and one noise image through the network, which is left as it was.

    Args:
        objective: None: any outputs will do.

    Returns:
        Its outputs.

    Raises:
        NetworkError: It rejects images of this shape, or its output is not finite or does not
            fit the objective.
    """
    output = outputs_of(run_images(network, image_shape), 2)
    name, shape = type(network).__name__, "x".join(map(str, image_shape))
    if objective is not None and not accepts(objective, output, 2):
        several = [] if isinstance(output, Tensor) else list(output)
        one = f", or one of the outputs: network.outputs=[{several[0]}]" if several else ""
        raise NetworkError(
            f"{name} returns {shapes_of(output)} for two images of {shape}; "
            f"objective={objective.name} expects {objective.expected}. A network for another task "
            f"needs another objective: objective=auto finds one, or package.module:Class{one}."
        )
    if not bool(finite_images(output).all()):
        raise NetworkError(
            f"{name} returns NaN or infinity for images of {shape}. Check its checkpoint."
        )
    return output


def run_images(
    network: nn.Module, image_shape: tuple[int, int, int], changes: Sequence[str] = ()
) -> object:
    """What a network, left as it was, returns for one black and one noise image.

    Args:
        changes: What was done to the network before, for the message: "moved to the CPU".

    Raises:
        NetworkError: It takes other inputs than images, rejects images of this shape, or returns
            no tensor of an entry for each image.
    """
    _check_inputs(network)
    first = next(network.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    images = torch.stack([torch.zeros(image_shape), noise(image_shape, 1)[0]]).to(device)
    returned = _eval_forward(network, images, changes)
    try:
        outputs_of(returned, len(images))
    except NetworkError as error:
        raise NetworkError(f"{type(network).__name__}: {error}") from None
    return returned


def noise(image_shape: tuple[int, int, int], count: int = 2) -> Tensor:
    """Images of normal noise, always the same, (count, *image_shape)."""
    return torch.randn(count, *image_shape, generator=torch.Generator().manual_seed(0))


def relative_difference(expected: object, given: object) -> float:
    """Largest difference, of the largest expected value; NaN where either is not finite.

    Of several outputs the largest, each beside its own largest value; infinite where there are
    others.

    Args:
        expected, given: What networks returned.
    """
    ours, theirs = named_tensors(expected), named_tensors(given)
    if ours.keys() != theirs.keys():
        return float("inf")
    found = [_difference(tensor, theirs[name]) for name, tensor in ours.items()]
    return max(found, key=lambda error: (error != error, error))  # NaN is the most


def _difference(expected: Tensor, given: Tensor) -> float:
    if given.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((given - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)


def _check_inputs(network: nn.Module) -> None:
    """Whether the forward can be called with images alone."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes_images = any(p.kind in (*by_place, inspect.Parameter.VAR_POSITIONAL) for p in parameters)
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (*by_place, inspect.Parameter.KEYWORD_ONLY)
    ]
    if len(needed) > 1 or not takes_images:
        name = type(network).__name__
        raise NetworkError(
            f"{name} takes {len(needed)} inputs ({', '.join(needed)}); amc compresses networks of "
            "one, a tensor of images. Give it a module that brings the others with it: its forward "
            "takes images and returns self.network(images, ...)."
        )


def _eval_forward(network: nn.Module, images: Tensor, changes: Sequence[str]) -> object:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            output: object = network(images)
    except Exception as cause:
        raise _failed(network, images, changes, cause) from cause
    finally:
        for module, training in modes:
            module.training = training
    return output


def _failed(
    network: nn.Module, images: Tensor, changes: Sequence[str], cause: Exception
) -> NetworkError:
    name, shape = type(network).__name__, "x".join(map(str, images.shape[1:]))
    kinds = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
    where = f"images of {shape} (channels x height x width)"
    said = f"{type(cause).__name__}: {str(cause).strip() or 'no message'}"
    if changes:
        return NetworkError(
            f"{name}, {' and '.join(changes)}, does not accept {where}: {said}. amc computes in "
            "float32 on the CPU: leave out of its forward what asks for another type or device, "
            "such as x.half() or x.cuda()."
        )
    if kinds:
        types = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return NetworkError(
            f"{name} has weights of {types} and does not accept {where} of float32: {said}. "
            "Convert it: network.float()."
        )
    if isinstance(cause, _CODE_ERRORS):
        return NetworkError(
            f"{name} fails on {where}: {said}. Correct its forward, which is called with one "
            "tensor (images, channels, height, width) of float32."
        )
    return NetworkError(
        f"{name} does not accept {where}: {cause}. Set data.image_size and data.channels to what "
        "it was built for."
    )
