"""What a network learns of a teacher: its outputs, and what its stages see.

By name (`amc.recovery.training_settings.DISTILLATIONS`):

- ``kd``: the outputs, by the objective's loss; of class scores softened ones (Hinton et al. 2015).
- ``at``: where a stage looks, the mean over channels of squared values (Zagoruyko & Komodakis 2017,
  "Paying more attention to attention"). They weigh it by 1000.
- ``sp``: which images of a batch are alike to a stage (Tung & Mori 2019, "Similarity-preserving
  knowledge distillation"). They weigh it by 3000.

A stage ends where the size of the maps changes for good (`amc.graph.cuts`); those of teacher and
network belong together that are of one size, whatever their channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import normalize

from amc.compress.verify import graph_of
from amc.errors import ConfigError, NetworkError
from amc.graph.cuts import shapes_at, stage_ends, with_values
from amc.objectives import Objective
from amc.objectives.outputs import Outputs, by_name, each, outputs_of, same_shapes, shapes_of


class Ensemble(nn.Module):
    """Several teachers as one: the mean of their outputs."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Outputs:
        """A tensor, or tensors by name, as each member gives."""
        return mean_of([outputs_of(member(images), len(images)) for member in self.members])


def mean_of(several: Sequence[Outputs]) -> Outputs:
    """The mean of what several networks gave for the same images.

    Raises:
        ConfigError: They are not of the same names and shapes.
    """
    first = several[0]
    for other in several[1:]:
        if not same_shapes(first, other):
            raise ConfigError(
                "Teachers of which the mean is learned must return the same, got "
                f"{shapes_of(first)} and {shapes_of(other)}."
            )
    if len(several) == 1:
        return first
    named = [by_name(outputs) for outputs in several]
    found = {name: torch.stack([outputs[name] for outputs in named]).mean(0) for name in named[0]}
    return found[""] if isinstance(first, Tensor) else found


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently two maps (images, channels, ...) are spread: a mean of squares.

    Of each image the squares are averaged over channels, and scaled to length 1.
    """
    return (_attention(student) - _attention(teacher)).square().mean()


def _attention(values: Tensor) -> Tensor:
    return normalize(values.float().square().mean(1).flatten(1))


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently two maps (images, ...) tell the images of a batch apart: a mean of squares.

    The products of all pairs of images, each row of them scaled to length 1.
    """
    return (_similarity(student) - _similarity(teacher)).square().mean()


def _similarity(values: Tensor) -> Tensor:
    rows = values.float().flatten(1)
    return normalize(rows @ rows.T)


INNER: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"at": attention, "sp": similarity}
"""Losses of a pair of stages."""


class Distillation:
    """A network and its teachers, run together, and the loss by the teachers."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        weights: Mapping[str, float],
        image_shape: tuple[int, int, int],
        temperature: float,
    ) -> None:
        """
        Args:
            network: That is trained; where stages are compared, one that amc compressed.
            teacher: In evaluation mode, on the same device; or an `Ensemble`.
            weights: By name; those of 0 are not computed.

        Raises:
            ConfigError: There are no stages to compare.
        """
        self._weights = {name: weight for name, weight in weights.items() if weight}
        self._temperature = temperature
        inner = sorted(self._weights.keys() & INNER.keys())
        members = list(teacher.members) if isinstance(teacher, Ensemble) else [teacher]
        self.network = network
        self._teachers: Sequence[nn.Module] = [member.eval() for member in members]
        self._is_inner = bool(inner)
        if inner:
            self._tap(inner, image_shape)

    def _tap(self, inner: Sequence[str], image_shape: tuple[int, int, int]) -> None:
        if not isinstance(self.network, fx.GraphModule):
            raise ConfigError(
                f"distill.{inner[0]} compares what is inside of networks, and must know the one "
                f"that is trained: a network that amc compressed, got "
                f"{type(self.network).__name__}. distill={{kd: 1.0}} asks for outputs alone."
            )
        device = next(self.network.parameters()).device
        graphs = [self.network]
        for teacher in self._teachers:
            graph = graph_of(teacher.cpu(), image_shape).plan.module
            graphs.append(graph.to(device).eval())
            teacher.to(device)
        images = torch.zeros(2, *image_shape, device=device)
        ends = [stage_ends(graph, shapes_at(graph.eval(), images)) for graph in graphs]
        shared = [size for size in ends[0] if all(size in others for others in ends)]
        # A map of one position says nothing of where it looks.
        self._inner = {
            name: [
                place for place, size in enumerate(shared) if name != "at" or math.prod(size) > 1
            ]
            for name in inner
        }
        without = [name for name, places in self._inner.items() if not places]
        if without:
            sizes = [", ".join(map(str, map(list, found))) or "none" for found in ends]
            raise ConfigError(
                f"distill.{without[0]} compares the ends of stages with maps of one size, and "
                f"network and teacher share none: {'; '.join(sizes)}."
            )
        tapped = [
            with_values(graph, [found[size].name for size in shared])
            for graph, found in zip(graphs, ends, strict=True)
        ]
        self.network, self._teachers = tapped[0], tapped[1:]

    def __call__(self, inputs: Tensor) -> tuple[Outputs, Callable[[Outputs, Objective], Tensor]]:
        """Run the network.

        Returns:
            Its outputs, and what gives the loss by the teachers, from the outputs as float32 and
            the objective.
        """
        outputs, seen = self._split(self.network(inputs), len(inputs))

        def loss(outputs: Outputs, objective: Objective) -> Tensor:
            return self._loss(outputs, seen, inputs, objective)

        return outputs, loss

    def _split(self, returned: Any, images: int) -> tuple[Outputs, list[Tensor]]:
        if not self._is_inner:
            return outputs_of(returned, images), []
        given, values = returned
        return outputs_of(given, images), values

    def _loss(
        self, outputs: Outputs, seen: list[Tensor], inputs: Tensor, objective: Objective
    ) -> Tensor:
        with torch.no_grad():  # not inference_mode: the loss keeps the targets for its gradient
            found = [self._split(teacher(inputs), len(inputs)) for teacher in self._teachers]
        taught = mean_of([each(given, Tensor.float) for given, _ in found])
        if not same_shapes(taught, outputs):
            raise NetworkError(
                f"The teacher must return what the network returns, {shapes_of(outputs)}, got "
                f"{shapes_of(taught)}. Distil from the network that this one was made of."
            )
        parts = []
        for name, weight in self._weights.items():
            if name == "kd":
                parts.append(weight * objective.teacher_loss(outputs, taught, self._temperature))
                continue
            pairs = [
                INNER[name](seen[place], theirs[place])
                for _, theirs in found
                for place in self._inner[name]
            ]
            parts.append(weight * torch.stack(pairs).sum() / len(found))
        return torch.stack(parts).sum()
