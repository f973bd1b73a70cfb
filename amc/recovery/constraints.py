"""What a strategy decided of a network's weights, kept while they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from amc.compress.network import decide
from amc.compress.quantization import Quantized
from amc.decisions import Held, decision_named, keep_zeros, tie_equal
from amc.decisions.forms import Levels
from amc.graph.blocks import called_paths
from amc.strategy import FLOAT_BITS, Strategy, Value

UPDATES = 100  # of what a gradual decision keeps, on the way to it


class Constraints:
    """Keeps a compressed network under its strategy: what was decided beside its channels.

    A decision says what it keeps of a weight (`amc.Decision.constrain`): gradients and weights are
    projected to that at every step. Where one says nothing, zeros and few values that the weight
    has are kept; where it has neither, the decision is applied again after every epoch.
    """

    def __init__(self, module: fx.GraphModule, strategy: Strategy) -> None:
        self._module, self._strategy = module, strategy
        self._free: list[tuple[str, str, Value]] = []
        self.held: dict[str, Held] = {}
        """By name of the parameter."""

    def update(self, share: float) -> None:
        """Ask anew what is kept.

        Args:
            share: As in `amc.Decision.constrain`.
        """
        self.held, self._free = {}, []
        called = called_paths(self._module)
        for name, path, value in sorted(self._strategy.values(), key=_after_zeros):
            if name == "precision" or path not in called:
                continue
            layer = self._module.get_submodule(path)
            found = decision_named(name).constrain(layer, value, share) or _by_content(layer)
            if found is None:
                self._free.append((name, path, value))
                continue
            weight, before = layer.weight, self.held.get(f"{path}.weight")
            assert isinstance(weight, Tensor)
            weight.data = found.project(weight.data)  # what the next decision on the layer sees
            self.held[f"{path}.weight"] = found if before is None else _both(before, found)

    def end_epoch(self) -> None:
        """Apply again what keeps nothing while training."""
        for name, path, value in self._free:
            layer = self._module.get_submodule(path)
            self._module.set_submodule(path, decision_named(name).apply(layer, value, None))

    def settle(self) -> None:
        """Give the layers all that was decided for them, as it is exported."""
        decide(self._module, self._strategy)


def _after_zeros(decided: tuple[str, str, Value]) -> bool:
    """Sorts few values behind zeros, which are one of them."""
    name, _, value = decided
    return isinstance(decision_named(name).form(value), Levels)


def _by_content(layer: nn.Module) -> Held | None:
    """What a weight that was decided on looks like."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    is_rounded = isinstance(layer, Quantized) and layer.bits.weight != FLOAT_BITS
    if not is_rounded and len(torch.unique(weight.detach())) <= weight.numel() // 2:
        return tie_equal(weight)
    return keep_zeros(weight) if bool((weight == 0).any()) else None


def _both(one: Held, other: Held) -> Held:
    def project(tensor: Tensor) -> Tensor:
        return other.project(one.project(tensor))

    return Held(project, one.gain * other.gain)


def quantized_layers(network: nn.Module) -> list[Quantized]:
    """The layers of a network that see a grid."""
    return [module for module in network.modules() if isinstance(module, Quantized)]


def share_at(step: int, steps: int, gradual: float) -> float:
    """How much of the way to what was decided is to be gone before a step.

    ``1 - (1 - t)^3`` (Zhu & Gupta 2017, eq. 1, from no zeros): half-way through ``gradual`` of all
    steps seven eighths. It changes a hundred times at most.

    Args:
        step: From 0.
        steps: Of all epochs.
        gradual: Part of them that is the way.
    """
    way = round(gradual * steps)
    if step >= way:
        return 1.0
    every = max(1, way // UPDATES)
    left = 1 - step // every * every / way
    return 1 - left**3
