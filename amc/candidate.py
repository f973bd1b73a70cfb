"""From a strategy to a smaller network: the one place where compression and recovery meet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from amc.compress.quantization import activation_range, quantize_layer
from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.errors import ConfigError, StrategyError
from amc.graph.graph import NetworkGraph
from amc.graph.types import ChannelGroup
from amc.recovery.batch_norm import recalibrate
from amc.recovery.importance import Order, absorbs_shift, column_units, removal_orders
from amc.recovery.least_squares import refit_weight
from amc.recovery.moments import CalibrationStatistics, gather_statistics
from amc.recovery.sequential import repair_sequentially
from amc.strategy import FLOAT, FLOAT_BITS, Bits, Strategy

_MEMO_BYTES = 256 * 2**20


@dataclass(frozen=True)
class RecoverySettings:
    """How a smaller network gets its weights, without any training.

    Attributes:
        images: Calibration images for moments and for the repair of kept strategies.
        batch_norm_images: Of these, how many BN recalibration sees per candidate.
        least_squares: Refit the weights that lost inputs; without it, nothing is repaired.
        batch_norm: Recalibrate BN statistics.
        max_columns: Widest layer (inputs * kernel area) that is refitted.
    """

    images: int = 1024
    batch_norm_images: int = 256
    least_squares: bool = True
    batch_norm: bool = True
    max_columns: int = 2304

    def __post_init__(self) -> None:
        for name in ("images", "batch_norm_images", "max_columns"):
            if getattr(self, name) < 2:
                raise ConfigError(f"recovery.{name} must be at least 2, got {getattr(self, name)}.")


@dataclass(frozen=True)
class CompressedNetwork:
    """A physically smaller network.

    Attributes:
        module: Runs like the original.
        strategy: What it was made from.
        kept: Free channel group -> positions of its kept channels, for rebuilding it.
    """

    module: fx.GraphModule
    strategy: Strategy
    kept: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of weights, biases and BN factors."""
        return sum(parameter.numel() for parameter in self.module.parameters())


class Compressor:
    """Applies strategies to one network; everything that can be known before is gathered once."""

    def __init__(
        self, graph: NetworkGraph, images: Tensor, settings: RecoverySettings | None = None
    ) -> None:
        """
        Args:
            graph: The traced network.
            images: Normalised calibration images, (n, channels, height, width).

        Raises:
            CalibrationError: The network's activations on the images are not finite.
        """
        self.graph = graph
        self.settings = settings or RecoverySettings()
        # Shuffled: data sets come sorted by class, and every part must look like the whole.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self._images = images[order[: self.settings.images]]
        self.statistics: CalibrationStatistics = gather_statistics(
            graph, self._images, max_columns=self.settings.max_columns
        )
        self.orders: dict[int, Order] = removal_orders(graph, self.statistics)
        self._weights = _Memo(_MEMO_BYTES)
        self._grids: dict[tuple[str, int], tuple[float, int]] = {}
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}

    @property
    def unrefitted(self) -> tuple[str, ...]:
        """Layers too wide to refit: their weights are only sliced."""
        return tuple(
            layer.name
            for layer in self.graph.layers
            if layer.inputs.terms
            and not layer.signature.is_depthwise
            and layer.name not in self.statistics.moments
        )

    def apply(self, strategy: Strategy) -> CompressedNetwork:
        """Build the smaller network: remove, refit, quantize, recalibrate.

        Raises:
            StrategyError: The strategy does not fit the network.
        """
        kept = self.kept_positions(strategy)
        keep = keep_mask(self.graph, kept)
        fitted = self._refit_all(keep) if self.settings.least_squares else {}
        weights = {path: weight for path, (weight, _) in fitted.items()}
        module = remove_channels(self.graph.plan, keep, weights)
        for path, (_, shift) in fitted.items():
            if shift is not None:
                self._shift_output(module, path, shift)
        self._quantize(module, strategy)
        if self.settings.batch_norm:
            recalibrate(module, self._images[: self.settings.batch_norm_images])
        return self._result(module, strategy, kept)

    def repair(self, strategy: Strategy) -> CompressedNetwork:
        """Build the smaller network with every layer refitted to what it really receives.

        Slower than `apply` (all calibration images go through both networks), and better: for
        the strategies that are kept. Without ``settings.least_squares`` it is `apply`.

        Raises:
            StrategyError: The strategy does not fit the network.
        """
        if not self.settings.least_squares:
            return self.apply(strategy)
        kept = self.kept_positions(strategy)
        keep = keep_mask(self.graph, kept)
        module = remove_channels(self.graph.plan, keep)
        self._quantize(module, strategy)
        repair_sequentially(
            self.graph, module, keep, self._images, max_columns=self.settings.max_columns
        )
        return self._result(module, strategy, kept)

    def kept_positions(self, strategy: Strategy) -> dict[int, npt.NDArray[np.int64]]:
        """Group index -> sorted positions of the channels that the strategy keeps."""
        counts = self.graph.kept_counts(strategy)
        return {
            index: np.sort(order[len(order) - counts[index] :])
            for index, order in self.orders.items()
        }

    def _result(
        self, module: fx.GraphModule, strategy: Strategy, kept: dict[int, npt.NDArray[np.int64]]
    ) -> CompressedNetwork:
        names = {self.graph.groups[i].name: tuple(p.tolist()) for i, p in kept.items()}
        return CompressedNetwork(module, strategy, names)

    def _refit_all(self, keep: KeepMask) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Layer path -> its weight, and what its output then lacks on average."""
        fitted = {path: self._refit(path, keep) for path in self.statistics.moments}
        return {path: result for path, result in fitted.items() if result is not None}

    def _shift_output(self, module: nn.Module, path: str, shift: Tensor) -> None:
        """Add a constant to a layer's outputs: to its bias, or off the mean that follows it."""
        bias = module.get_submodule(path).bias
        if isinstance(bias, nn.Parameter):
            bias.data += shift
        elif (norm := self._norms.get(path)) is not None:
            mean = module.get_submodule(norm).running_mean
            assert isinstance(mean, Tensor)
            mean -= shift

    def _refit(self, path: str, keep: KeepMask) -> tuple[Tensor, Tensor | None] | None:
        """Weight with kept inputs and outputs, and the constant its output lacks (None: none)."""
        units = self.graph.plan.layers[path]
        inputs = keep[units.inputs]
        if inputs.all():
            return None
        key = path, inputs.tobytes()
        full = self._weights.get(key)
        if full is None:
            full = self._refit_all_outputs(path, keep)
            self._weights.put(key, full)
        weight, shift = full
        outputs = torch.from_numpy(np.flatnonzero(keep[units.outputs]))
        return weight[outputs], None if shift is None else shift[outputs]

    def _refit_all_outputs(self, path: str, keep: KeepMask) -> tuple[Tensor, Tensor | None]:
        layer = self.graph.plan.module.get_submodule(path)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        moments = self.statistics.moments[path]
        columns = column_units(layer, self.graph.plan.layers[path].inputs)
        kept = torch.from_numpy(np.flatnonzero(keep[columns]))
        groups = moments.gram.shape[0]
        weight = layer.weight.detach().reshape(groups, -1, len(columns))
        centred = absorbs_shift(self.graph, path)
        gram = moments.centred() if centred else moments.gram
        fitted = refit_weight(weight, gram, kept)
        shift = None
        if centred:
            mean = moments.mean.unsqueeze(2)  # (groups, columns, 1)
            shift = (weight @ mean - fitted @ mean[:, kept]).flatten()
        return fitted.reshape(len(layer.weight), -1, *layer.weight.shape[2:]), shift

    def _quantize(self, module: fx.GraphModule, strategy: Strategy) -> None:
        for path, bits in strategy.bits.items():
            if not bits.is_float:
                owner, _, name = path.rpartition(".")
                layer = quantize_layer(
                    module.get_submodule(path), bits, self._input_grid(path, bits)
                )
                module.get_submodule(owner)._modules[name] = layer

    def _input_grid(self, path: str, bits: Bits) -> tuple[float, int] | None:
        if bits.activation == FLOAT_BITS:
            return None
        key = path, bits.activation
        if key not in self._grids:
            values = self.statistics.values[path]
            self._grids[key] = activation_range(values, bits.activation)
        return self._grids[key]


def apply_strategy(compressor: Compressor, strategy: Strategy) -> CompressedNetwork:
    """The smaller network of a strategy (`Compressor.apply`)."""
    return compressor.apply(strategy)


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
        positions = _positions(kept.get(group.name, range(group.size)), group)
        if len(positions) != counts[group.index]:
            raise StrategyError(
                f"The compressed network has {len(positions)} channels of group {group.name!r}, "
                f"its strategy keeps {counts[group.index]}. They are not of the same run."
            )
        chosen[group.index] = positions
    unknown = set(kept) - {group.name for group in graph.free_groups}
    if unknown:
        raise StrategyError(
            f"The compressed network keeps channels of group {min(unknown)!r}, which this "
            "network does not have. It was made from another network."
        )
    module = remove_channels(graph.plan, keep_mask(graph, chosen))
    for path, bits in strategy.bits.items():
        if bits != FLOAT:
            owner, _, name = path.rpartition(".")
            layer = quantize_layer(module.get_submodule(path), bits, (1.0, 0))
            module.get_submodule(owner)._modules[name] = layer
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        first = str(error).splitlines()[1:4]
        raise StrategyError(
            "The compressed weights do not fit the network they are said to come from: "
            f"{' '.join(line.strip() for line in first)}"
        ) from error
    return CompressedNetwork(module, strategy, dict(kept))


def _positions(positions: Sequence[int], group: ChannelGroup) -> npt.NDArray[np.int64]:
    found = np.array(positions)
    whole = found.ndim == 1 and found.dtype.kind == "i" and len(found) > 0
    if not whole or found[0] < 0 or found[-1] >= group.size or (np.diff(found) <= 0).any():
        raise StrategyError(
            f"The compressed network must keep channels of group {group.name!r} by ascending "
            f"positions below {group.size}, got {str(positions)[:60]}."
        )
    return found.astype(np.int64)


class _Memo:
    """The last refitted weights, within a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._size = capacity, 0
        self._entries: OrderedDict[tuple[str, bytes], tuple[Tensor, Tensor | None]] = OrderedDict()

    def get(self, key: tuple[str, bytes]) -> tuple[Tensor, Tensor | None] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: tuple[str, bytes], value: tuple[Tensor, Tensor | None]) -> None:
        self._entries[key] = value
        self._size += value[0].nbytes
        while self._size > self._capacity and len(self._entries) > 1:
            _, (weight, _) = self._entries.popitem(last=False)
            self._size -= weight.nbytes
