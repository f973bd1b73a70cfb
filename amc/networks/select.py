"""Some of a network's outputs, where it gives more than count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from amc.errors import NetworkError
from amc.objectives.outputs import described, parts_of


class SelectOutputs(nn.Module):
    """A network that gives some of another's outputs: one as it is, several in a dict by name.

    What the others alone are computed from is no part of it: boxes that are decoded from raw maps,
    heads that only training needs.

    Attributes:
        network: The other.
        outputs: Names of what it gives: keys of a dict, fields, places from 0; of what is inside of
            another with a dot between them, ``"maps.0"``.
    """

    def __init__(self, network: nn.Module, outputs: Sequence[str | int]) -> None:
        """
        Raises:
            NetworkError: No outputs are named, or one is twice.
        """
        super().__init__()
        self.network = network
        self.outputs = tuple(map(str, outputs))
        if not self.outputs or len(set(self.outputs)) < len(self.outputs):
            raise NetworkError(
                f"network.outputs must name outputs, each once, as [0,1] or [out]; got "
                f"{list(outputs)}."
            )

    def forward(self, images: Tensor) -> Any:
        returned = self.network(images)
        found = {name: _part(returned, name) for name in self.outputs}
        return found if len(found) > 1 else found[self.outputs[0]]


def _part(returned: Any, name: str) -> Any:
    """What a forward returned under a name."""
    held, left = returned, name
    while left:
        names = dict(_parts(held))
        # The longest first: keys may have dots themselves.
        known = [key for key in names if left == key or left.startswith(f"{key}.")]
        if not known:
            what = described(_value(held))
            raise NetworkError(
                f"network.outputs names {name!r}, and there is no {left!r} in what the network "
                f"returned there: {what}."
            )
        key = max(known, key=len)
        held, left = names[key], left[len(key) + 1 :]
    return held


def _value(held: Any) -> Any:
    return held.node.meta["value"] if isinstance(held, fx.Proxy) else held


def _parts(held: Any) -> Sequence[tuple[str, Any]]:
    """As `parts_of`; of what stands for a structure while a network is traced, too."""
    if not isinstance(held, fx.Proxy):
        return parts_of(held)
    value, pick = _value(held), held.__getitem__
    if isinstance(value, Mapping):
        return [(str(key), pick(key)) for key in value]
    if isinstance(value, (tuple, list)):
        return [(str(place), pick(place)) for place in range(len(value))]
    return ()
