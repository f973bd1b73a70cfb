"""Networks that return several tensors, as any structure of them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.objectives.outputs import named_tensors

SHAPE = (3, 8, 8)


@dataclass
class Found:
    logits: Tensor
    boxes: Tensor
    hidden: Tensor | None = None


class Pair(NamedTuple):
    boxes: Tensor
    logits: Tensor


def _collected(boxes: Tensor, logits: Tensor) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = defaultdict(list)
    found["maps"] += [boxes, logits]
    return found


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda boxes, logits: (boxes, logits),
    "list": lambda boxes, logits: [boxes, logits],
    "dict": lambda boxes, logits: {"boxes": boxes, "logits": logits, "none": None},
    "ordered": lambda boxes, logits: OrderedDict(out=logits, aux=boxes),
    "collected": _collected,
    "dataclass": lambda boxes, logits: Found(logits, boxes),
    "named tuple": Pair,
    "nested": lambda boxes, logits: {"scales": [Found(logits, boxes), (boxes,)]},
    "twice": lambda boxes, logits: (logits, logits),
    "pieces": lambda boxes, logits: logits.split([2, 3], 1),
    "decided": lambda boxes, logits: {"logits": logits, "top": logits.argmax(1)},
}


class Several(nn.Module):
    def __init__(self, structure: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.structure = structure
        self.body, self.neck = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.boxes, self.logits = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.neck(self.body(x).relu()).relu()
        return self.structure(self.boxes(x), self.logits(x))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_channels_are_removed_from_networks_of_several_outputs(kind: str) -> None:
    torch.manual_seed(0)
    network = Several(STRUCTURES[kind]).eval()
    graph = graph_of(network, SHAPE)
    free = {group.name: group.index for group in graph.free_groups}
    assert set(free) == {"body", "neck"}
    keep = keep_mask(graph, {free["body"]: np.arange(5), free["neck"]: np.array([0, 2, 3])})
    images = torch.rand(3, *SHAPE)
    assert removal_error(graph, keep, images) < 1e-5
    expected, given = network(images), remove_channels(graph.plan, keep)(images)
    assert type(given) is (dict if kind == "collected" else type(expected))
    ours, theirs = named_tensors(expected), named_tensors(given)
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_what_is_given_out_stays_whole_and_says_so() -> None:
    graph = graph_of(Several(STRUCTURES["dataclass"]), SHAPE)
    frozen = {group.name: group.reason for group in graph.frozen_groups}
    assert frozen == dict.fromkeys(["boxes", "logits"], "is an output of the network")
    given_out = {t.layer for t in graph.tensors if t.is_output}
    assert given_out == {layer.index for layer in graph.layers if layer.name in frozen}


def test_packing_outputs_is_no_operator_that_costs() -> None:
    plain, packed = (graph_of(Several(STRUCTURES[k]), SHAPE) for k in ("tuple", "dataclass"))
    assert [op.signature for op in plain.operators] == [op.signature for op in packed.operators]
