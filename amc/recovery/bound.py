"""The weights that decisions bind, at every step of a training.

Two ways. Either what was decided stays: which weights are zero, and which share a value; gradients
and weights are projected to that (`amc.decisions.Held`). Or it is trained too, straight through:
behind the weights that the network runs with there are full ones, which gradients move as if
they were run with. Every `RECHOSEN` steps it is asked anew which of the full ones are to be zero
and which are to share a value, so that a weight may come back that should not have gone (dynamic
network surgery, Guo et al. 2016, "Dynamic Network Surgery for Efficient DNNs", section 3), and one
that is between two values may change sides (as in binary networks, Courbariaux et al. 2015,
"BinaryConnect", section 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.decisions import Held
from amc.recovery.constraints import Constraints

RECHOSEN = 16  # steps between two choices of what is zero and what is shared


class BoundWeights:
    """Keeps parameters to what decisions ask of them, before and after an optimizer's steps.

    Attributes:
        behind: Name of a parameter -> its full weight, while it is trained straight through.
    """

    def __init__(
        self, network: nn.Module, constraints: Constraints, optimizer: torch.optim.Optimizer
    ) -> None:
        self._network, self._constraints, self._optimizer = network, constraints, optimizer
        self._held: list[tuple[str, nn.Parameter, Held]] = []
        self.behind: dict[str, Tensor] = {}

    def update(self, share: float, *, straight_through: bool) -> None:
        """Ask anew what is kept, of the full weights where there are any.

        Args:
            share: As in `amc.Decision.constrain`.
            straight_through: Whether full weights are trained from now on.
        """
        named = dict(self._network.named_parameters())
        full = {name: parameter.data for name, parameter in named.items()} | self.behind
        for name, weight in self.behind.items():
            named[name].data = weight
        self._constraints.update(share)
        self._held = [(name, named[name], held) for name, held in self._constraints.held.items()]
        self.behind = {name: full[name] for name, *_ in self._held} if straight_through else {}
        for _, parameter, held in self._held:
            parameter.data = held.project(parameter.data)
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None and not straight_through:
                buffer.copy_(held.project(buffer))

    def before_step(self) -> None:
        """Turn gradients into what is followed of them, and give way to the full weights.

        Those of weights that share a value move it together, as without full weights; by the rest
        of their gradients they move apart.
        """
        for name, parameter, held in self._held:
            found = parameter.grad
            if found is not None:
                own = found - held.project(found) if name in self.behind else 0
                parameter.grad = held.gradient(found) + own
            if name in self.behind:
                parameter.data = self.behind[name]

    def after_step(self) -> None:
        """Bring what the optimizer moved under the decisions again."""
        for name, parameter, held in self._held:
            if name in self.behind:
                self.behind[name] = parameter.data
            parameter.data = held.project(parameter.data)

    def resume(self, behind: Mapping[str, Tensor]) -> None:
        """Take up full weights that were written down."""
        named = dict(self._network.named_parameters())
        self.behind = {name: torch.empty_like(named[name]).copy_(behind[name]) for name in behind}
