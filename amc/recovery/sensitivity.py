"""How much a change of a layer's output matters to the network's decision, without running it.

A small change dy of outputs moves what the network predicts by a KL divergence of
``0.5 * dy^T F dy`` nats, with F the Fisher information (Amari 1998; for channels: Theis et al.
2018, Molchanov et al. 2019), the expectation of ``g g^T`` over images and targets that the network
itself predicts, g being the gradient of the log-likelihood. Nats are the same unit for every layer,
decision and network. Two estimates, both from a backward pass that changes no weight:

- per output channel, the diagonal of F summed over positions: enough to rank a layer's channels;
- of given changes, ``0.5 * E[(g . dy)^2]``: errors at neighbouring positions pull together or
  cancel, which the diagonal does not see, and layers become comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc.graph.graph import NetworkGraph
from amc.layers import LinearChange, OutputChange, ProductKind, is_depthwise, kind_of
from amc.objectives import DEFAULT, Objective
from amc.objectives.outputs import by_name, outputs_of
from amc.recovery.moments import check_finite
from amc.utils.progress import progress_bar

PIXELS = 64 * 32 * 32  # of a batch: activations of all layers are held for the backward pass


def output_sensitivities(
    graph: NetworkGraph, images: Tensor, objective: Objective = DEFAULT
) -> dict[str, Tensor]:
    """Divergence, in nats per image, for each unit of mean squared error of an output channel.

    Args:
        images: Normalised, shape (n, channels, height, width).
        objective: What the targets are drawn by.

    Returns:
        Layer path -> float64, shape (outputs,); 0 where no gradient comes back.

    Raises:
        CalibrationError: Outputs or gradients are not finite.
    """
    sums = {
        path: torch.zeros(len(units.outputs), dtype=torch.float64)
        for path, units in graph.plan.layers.items()
    }

    def note(path: str, layer: nn.Module, received: Tensor, gradient: Tensor, _: slice) -> None:
        channels_first = gradient.double().square().movedim(kind_of(layer).channel_dim, 0)
        sums[path] += channels_first.flatten(1).sum(1)

    _run_backward(graph, images, objective, list(sums), note, "weighing channels")
    for path, total in sums.items():
        check_finite(f"Gradients at layer {path!r}", total)
    return {path: total / (2 * len(images)) for path, total in sums.items()}


def divergences(
    graph: NetworkGraph,
    images: Tensor,
    changes: Mapping[str, Sequence[tuple[int, OutputChange]]],
    count: int,
    objective: Objective = DEFAULT,
) -> npt.NDArray[np.float64]:
    """Estimated divergence, in nats, of so many hypothetical changes.

    Args:
        images: As for `output_sensitivities`.
        changes: Layer path -> (number of the change, what it does to the layer's output); a
            change may touch several layers.
        count: Of changes.

    Returns:
        Shape (count,).

    Raises:
        CalibrationError: Outputs or gradients are not finite.
    """
    pulls = torch.zeros(count, len(images), dtype=torch.float64)

    def note(path: str, layer: nn.Module, received: Tensor, gradient: Tensor, at: slice) -> None:
        # g . (dW * x) is dW . (the gradient of the weight): one pass for all changes of a layer.
        kind = kind_of(layer)
        gradients = None
        if isinstance(kind, ProductKind):
            gradients = kind.weight_gradients(layer, received, gradient)
        outputs = gradient.flatten(2).sum(2) if gradient.dim() == 4 else gradient
        for number, change in changes[path]:
            if gradients is not None and isinstance(change, LinearChange):
                pulls[number, at] += change.pulls(gradients, outputs).double()
            else:
                pulled = (change(layer, received) * gradient).double()
                pulls[number, at] += pulled.flatten(1).sum(1)

    _run_backward(graph, images, objective, list(changes), note, "weighing decisions")
    for path, numbered in changes.items():
        found = pulls[[number for number, _ in numbered]]
        check_finite(f"Gradients at layer {path!r}", found)
    estimates: npt.NDArray[np.float64] = (pulls.square().mean(1) / 2).numpy()
    return estimates


def input_pulls(
    graph: NetworkGraph, images: Tensor, objective: Objective = DEFAULT
) -> dict[str, Tensor]:
    """What each input of a layer adds to the loss to first order, ``x . dL/dx`` by this layer.

    Args:
        images: As for `output_sensitivities`.

    Returns:
        Layer path -> float64, (images, inputs), of all but depthwise layers; summed over calls.

    Raises:
        CalibrationError: Outputs or gradients are not finite.
    """
    layers = {path: graph.plan.module.get_submodule(path) for path in graph.plan.layers}
    found = {
        path: torch.zeros(len(images), len(units.inputs), dtype=torch.float64)
        for path, units in graph.plan.layers.items()
        if not is_depthwise(layers[path])
    }

    def note(path: str, layer: nn.Module, received: Tensor, gradient: Tensor, at: slice) -> None:
        kind, weight = kind_of(layer), layer.weight
        assert isinstance(weight, Tensor)
        with torch.enable_grad():
            x = received.clone().requires_grad_()
            (slope,) = torch.autograd.grad(kind.apply(layer, x, weight.detach(), None), x, gradient)
        product = (x.detach() * slope).movedim(kind.channel_dim, 1).double()
        found[path][at] += product.flatten(2).sum(2) if product.dim() > 2 else product

    _run_backward(graph, images, objective, list(found), note, "weighing inputs")
    for path, pulls in found.items():
        check_finite(f"Gradients at layer {path!r}", pulls)
    return found


def _run_backward(
    graph: NetworkGraph,
    images: Tensor,
    objective: Objective,
    paths: Sequence[str],
    note: Callable[[str, nn.Module, Tensor, Tensor, slice], None],
    description: str,
) -> None:
    """Call ``note(path, layer, input, gradient of the output, images)`` for every layer call."""
    generator = torch.Generator().manual_seed(0)
    module, batch = graph.plan.module, max(1, PIXELS // (images.shape[2] * images.shape[3]))
    now = slice(0, 0)

    def hook_for(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            received = inputs[0].detach()
            if output.requires_grad:
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda g: note(path, layer, received, g, now)
                )

        return hook

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(module.get_submodule(path).register_forward_hook(hook_for(path)))
        hooks.enter_context(torch.enable_grad())
        bar = hooks.enter_context(progress_bar(description, len(images)))
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            now = slice(start, start + len(part))
            # A sum is no leaf: networks that work in place may change it.
            outputs = outputs_of(module(part.clone().requires_grad_() + 0), len(part))
            for output in by_name(outputs).values():
                check_finite("The network's outputs", output)
            loss = objective.sampled_loss(outputs, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            bar.advance(len(part))
