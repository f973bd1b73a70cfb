"""A physically smaller network, and how it is built again from what a run folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

from amc.compress.removal import keep_mask, remove_channels
from amc.decisions import Decision, decision_named
from amc.decisions.forms import Form
from amc.errors import StrategyError
from amc.graph.blocks import called_paths
from amc.graph.graph import NetworkGraph
from amc.graph.types import ChannelGroup
from amc.strategy import FLOAT, Strategy, Value

_MADE_FROM = "amc_made_from"


@dataclass(frozen=True)
class CompressedNetwork:
    """A physically smaller network.

    Its module remembers what it was made from, so that what is written after a training can be
    rebuilt (`of`).

    Attributes:
        module: Runs like the original.
        strategy: What it was made from.
        kept: Free channel group -> positions of its kept channels, for rebuilding it.
        notes: Where a repair was refused, and why.
    """

    module: fx.GraphModule
    strategy: Strategy
    kept: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        made_from = self.strategy, dict(self.kept)
        # fx keeps `meta` in copy.deepcopy and the other attributes in pickle; neither keeps both.
        self.module.meta[_MADE_FROM] = made_from
        setattr(self.module, _MADE_FROM, made_from)

    @classmethod
    def of(cls, module: nn.Module) -> CompressedNetwork | None:
        """The compressed network that a module is; None where it is another's."""
        if not isinstance(module, fx.GraphModule):
            return None
        made_from = module.meta.get(_MADE_FROM) or getattr(module, _MADE_FROM, None)
        return None if made_from is None else cls(module, *made_from)


def forms_asked(strategy: Strategy) -> list[tuple[str, Form]]:
    """Layer path and form, of all that decisions ask of weights.

    Raises:
        StrategyError: As `decide`.
    """
    asked = (
        (path, _found(strategy, name, path, value).form(value))
        for name, path, value in strategy.values()
    )
    return [(path, form) for path, form in asked if form is not None]


def decide(
    module: fx.GraphModule, strategy: Strategy, inputs: Mapping[str, Tensor] | None = None
) -> None:
    """Give the layers of a network what a strategy decides for them beside their channels.

    Args:
        inputs: Layer path -> sampled values that it receives in the original; None where the
            weights come afterwards.

    Raises:
        StrategyError: A decision is unknown, or has other numbers.
    """
    called = called_paths(module)
    for decision, path, value in strategy.values():
        if path in called:
            owner, _, name = path.rpartition(".")
            layer = _found(strategy, decision, path, value).apply(
                module.get_submodule(path), value, None if inputs is None else inputs[path]
            )
            module.get_submodule(owner)._modules[name] = layer


def _found(strategy: Strategy, decision: str, path: str, value: Value) -> Decision:
    """The decision that gives a layer a value.

    Raises:
        StrategyError: It is unknown, has other numbers, or does not suit the layer's bits.
    """
    found = decision_named(decision)
    bits = strategy.bits.get(path, FLOAT)
    if len(value) != len(found.parts):
        raise StrategyError(
            f"The strategy must give layer {path!r} {' and '.join(found.parts)} by "
            f"{decision!r}, got {value!r}."
        )
    if not found.suits(value, bits):
        raise StrategyError(
            f"The strategy gives layer {path!r} {value!r} by {decision!r}, which does not go "
            f"with its bits of {bits}. Leave one of the two out."
        )
    return found


def rebuild(
    graph: NetworkGraph,
    kept: Mapping[str, tuple[int, ...]],
    strategy: Strategy,
    tensors: Mapping[str, Tensor],
) -> CompressedNetwork:
    """The compressed network that a run folder describes, with its weights.

    Raises:
        StrategyError: The description does not fit the network.
    """
    counts = graph.kept_counts(strategy)
    chosen: dict[int, npt.NDArray[np.int64]] = {}
    for group in graph.free_groups:
        least = 0 if group.index in graph.removable_groups else 1
        positions = _positions(kept.get(group.name, range(group.size)), group, least)
        if len(positions) != counts[group.index]:
            raise StrategyError(
                f"The compressed network has {len(positions)} channels of group {group.name!r}, "
                f"its strategy keeps {counts[group.index]}. Either the network given is not the "
                "one that was compressed, or the two files are not of the same run."
            )
        chosen[group.index] = positions
    unknown = set(kept) - {group.name for group in graph.free_groups}
    if unknown:
        raise StrategyError(
            f"The compressed network keeps channels of group {min(unknown)!r}, which this "
            "network does not have. It was made from another network."
        )
    module = remove_channels(graph.plan, keep_mask(graph, chosen))
    decide(module, strategy)
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        first = str(error).splitlines()[1:4]
        raise StrategyError(
            "The compressed weights do not fit the network they are said to come from: "
            f"{' '.join(line.strip() for line in first)}"
        ) from error
    return CompressedNetwork(module, strategy, dict(kept))


def give_whole_weights(graph: NetworkGraph, network: CompressedNetwork) -> None:
    """Give a compressed network the original's weights, where decisions ask a form of them.

    So a training that approaches forms gradually begins where there are none yet.

    Args:
        graph: Of the original network.
    """
    positions = {group.index: network.kept.get(group.name) for group in graph.free_groups}
    chosen = {index: np.array(kept) for index, kept in positions.items() if kept is not None}
    whole = remove_channels(graph.plan, keep_mask(graph, chosen))
    called = called_paths(whole)
    for path, _ in forms_asked(network.strategy):
        if path in called:
            given = whole.get_submodule(path).weight
            weight = network.module.get_submodule(path).weight
            assert isinstance(given, Tensor)
            assert isinstance(weight, Tensor)
            weight.data = given.data.to(weight)


def _positions(positions: Sequence[int], group: ChannelGroup, least: int) -> npt.NDArray[np.int64]:
    found = np.array(positions)
    if found.shape == (0,) and not least:
        return found.astype(np.int64)
    whole = found.ndim == 1 and found.dtype.kind == "i" and len(found) > 0
    if not whole or found[0] < 0 or found[-1] >= group.size or (np.diff(found) <= 0).any():
        raise StrategyError(
            f"The compressed network must keep channels of group {group.name!r} by ascending "
            f"positions below {group.size}, got {str(positions)[:60]}."
        )
    return found.astype(np.int64)
