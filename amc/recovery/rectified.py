"""What an activation throws away need not be matched: targets that look through the ReLU.

Where the original's ReLU receives s <= 0, it gives 0, and so does the smaller network's whenever
what that receives is not above 0: only what rises above 0 is an error. Least squares on the values
before the ReLU spends weights on matching the rest. The loss that does not,

    (s - t)^2 where s > 0,    max(t, 0)^2 where s <= 0,    t: what the smaller network's receives,

is convex in the weight. With s replaced by min(t, 0) wherever s <= 0 it becomes a square that is
nowhere below it and touches it at the present t (majorise, minimise): solved anew with such
targets, the loss never rises, and the inputs' moments stay what they are. Zhang, Zou, He, Sun
2016, "Accelerating Very Deep Convolutional Networks for Classification and Detection", reach
through the ReLU by such an alternation too, with a penalty that grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.graph.graph import NetworkGraph
from amc.graph.operators import operator_of


@dataclass(frozen=True)
class Clip:
    """An activation that keeps what lies between ``low`` and ``high`` and throws away the rest."""

    low: float
    high: float = math.inf

    def aims(self, wanted: Tensor, received: Tensor) -> Tensor:
        """What to aim at next; the loss above, with ``high`` alike, is not higher there.

        Args:
            wanted: What the original's activation receives.
            received: What the smaller network's would receive now.
        """
        aims = torch.where(wanted <= self.low, received.clamp(max=self.low), wanted)
        if math.isfinite(self.high):
            aims = torch.where(wanted >= self.high, received.clamp(min=self.high), aims)
        return aims


def find_clips(graph: NetworkGraph, streams: Mapping[str, object]) -> dict[str, Clip]:
    """Layers whose output only a clipping activation reads, and which.

    The output is read after the layer's BN, and after the addition where it is in ``streams``.
    """
    norms = set(graph.plan.folds.values())
    clips: dict[str, Clip] = {}
    for node in graph.plan.module.graph.nodes:
        path = str(node.target)
        if node.op != "call_module" or path not in graph.plan.layers:
            continue
        last = next(iter(node.users)) if path in norms else node
        if path in streams:
            last = next(iter(last.users))
        found = {operator_of(graph.plan.module, user).clips for user in last.users}
        if len(found) == 1 and (ends := found.pop()) is not None:
            clips[path] = Clip(*ends)
    return clips
