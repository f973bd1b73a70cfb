"""From a strategy to a smaller network: the one place where compression and recovery meet."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from amc.compress.quantization import activation_range, quantize_layer
from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.errors import ConfigError, StrategyError
from amc.graph.blocks import called_paths
from amc.graph.graph import NetworkGraph
from amc.graph.types import ChannelGroup
from amc.layers import LinearChange, OutputChange, ProductKind, kind_of, layer_at
from amc.layout import fast_layout, laid_out
from amc.objectives import DEFAULT, Objective
from amc.progress import progress_bar
from amc.recovery.batch_norm import add_drift, drifts, recalibrate
from amc.recovery.errors import LayerErrors, layer_errors, mean_errors
from amc.recovery.fitting import RIDGES
from amc.recovery.importance import RemovalPath, absorbs_shift, column_units, removal_paths
from amc.recovery.least_squares import refit_weight
from amc.recovery.moments import (
    BATCH,
    CalibrationStatistics,
    Moments,
    by_channel,
    by_place,
    gather_statistics,
)
from amc.recovery.reference import Reference, gather_reference
from amc.recovery.sensitivity import output_sensitivities
from amc.recovery.sequential import Refit, refit_layers
from amc.strategy import FLOAT, FLOAT_BITS, Bits, Strategy

IMPORTANCES = ("surgeon", "magnitude")
ROWS = 81_920  # of a layer's inputs in the repair of a kept strategy: few positions, many images
POSITIONS = 128  # of one image at most: more of them tell little more, being alike
QUICK_ROWS = 4_096  # in the repair of a candidate
QUICK_RIDGE = 3e-2  # so few rows must not pull a weight far from what the moments gave
WEIGHED_PIXELS = 256 * 224 * 224  # of all images together
THIN_RIDGE = 1.0  # the same, of a network of which the calibration images know little
QUICK_RECTIFICATIONS = 1  # more fit the few rows, not the network
_COUNTS = ("images", "repair_images", "batch_norm_images", "error_images", "max_columns")
_MEMO_BYTES = 256 * 2**20
_MADE_FROM = "amc_made_from"
FEWEST_QUICK = 64  # images of a quick repair, if there are so many
LARGE_PIXELS = 96 * 96  # from which on an image has positions enough for two
AMPLE = 512  # images for the repair from which on layers are fitted to all of them
FEWEST_CROSSED = 4  # images: errors of decisions on each half, of layers fitted to the other
HELD_SHARE, HELD_IMAGES = 8, 512  # of the calibration images, one in so many and at most


@dataclass(frozen=True)
class RecoverySettings:
    """How a smaller network gets its weights, without any training.

    Attributes:
        images: Calibration images for moments.
        repair_images: Calibration images for the repair of kept strategies.
        quick_images: Of ``images``, how many the quick repair of every candidate sees, at most
            (`judged_on`); 0: none, and BN is recalibrated instead.
        batch_norm_images: Of ``images``, how many BN recalibration sees per candidate.
        error_images: Of ``images``, how many the errors of single decisions are estimated on.
        least_squares: Refit the weights that lost inputs; without it, nothing is repaired.
        batch_norm: Recalibrate BN statistics, of what is not repaired layer by layer.
        max_columns: Widest layer (inputs * kernel area) of which all columns are told apart; of
            a wider one the channels are.
        importance: Which channels go first: "surgeon" or "magnitude" (`removal_paths`).
        sequential: Repair layer by layer (`amc.recovery.sequential`): kept strategies, and with
            ``quick_images`` every candidate. Without it neither is.
        stream_correction: In both repairs, let each residual block repair what earlier ones broke.
        rectified: In both, do not aim at what a ReLU throws away (`amc.recovery.rectified`).
    """

    images: int = 1024
    repair_images: int = 5000
    quick_images: int = 256
    batch_norm_images: int = 256
    error_images: int = 256
    least_squares: bool = True
    batch_norm: bool = True
    max_columns: int = 2304
    importance: str = "surgeon"
    sequential: bool = True
    stream_correction: bool = True
    rectified: bool = True

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 2:
                raise ConfigError(f"recovery.{name} must be at least 2, got {getattr(self, name)}.")
        if self.quick_images < 0:
            raise ConfigError(f"recovery.quick_images must be at least 0, got {self.quick_images}.")
        if self.importance not in IMPORTANCES:
            raise ConfigError(
                f"recovery.importance must be one of {', '.join(IMPORTANCES)}, "
                f"got {self.importance!r}."
            )

    def judged_on(self, images: int, pixels: int) -> RecoverySettings:
        """With a quick repair that costs no more than judging a candidate on so many images.

        Args:
            pixels: Of an image: a large one tells more, at more positions, and takes longer.
        """
        most = max(FEWEST_QUICK, images // (2 if pixels < LARGE_PIXELS else 4))
        return replace(self, quick_images=min(self.quick_images, most))

    @property
    def repairs_candidates(self) -> bool:
        """Whether every candidate is repaired layer by layer, on few images."""
        return self.least_squares and self.sequential and self.quick_images > 0


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


class Compressor:
    """Applies strategies to one network; everything that can be known before is gathered once."""

    def __init__(
        self,
        graph: NetworkGraph,
        images: Tensor,
        settings: RecoverySettings | None = None,
        objective: Objective = DEFAULT,
    ) -> None:
        """
        Args:
            graph: The traced network.
            images: Normalised calibration images, (n, channels, height, width).
            objective: What divergence from the original's outputs is, and what matters to it.

        Raises:
            CalibrationError: The network's activations on the images are not finite.
        """
        self.graph = graph
        self.settings, self._objective = settings or RecoverySettings(), objective
        # Shuffled: data sets come sorted by class, and every part must look like the whole.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        layout = fast_layout(graph.plan.module, _shape_of(images))
        images = laid_out(images[order], layout)
        # What a whole repair is judged on: nothing that it is judged against is fitted to it.
        held = min(len(images) // HELD_SHARE, HELD_IMAGES)
        self._held_images = images[len(images) - held :]
        images = images[: len(images) - held]
        self._repair_images = images[: self.settings.repair_images]
        self._images = images[: self.settings.images]
        self.statistics: CalibrationStatistics = gather_statistics(
            graph, self._images, max_columns=self.settings.max_columns
        )
        self.sensitivities = output_sensitivities(
            graph, self._images[: _weighed(images)], objective=objective
        )
        self.paths: dict[int, RemovalPath] = removal_paths(
            graph, self.statistics, self.sensitivities, self.settings.importance
        )
        self._weights = _Memo(_MEMO_BYTES)
        self._grids: dict[tuple[str, int], tuple[float, int]] = {}
        self._drifts = drifts(graph.plan.module, self._norm_images)
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}

    @property
    def _norm_images(self) -> Tensor:
        return self._images[: self.settings.batch_norm_images]

    @property
    def unrefitted(self) -> tuple[str, ...]:
        """Layers too wide to be refitted from moments: their weights are only sliced."""
        return tuple(
            layer.name
            for layer in self.graph.layers
            if layer.inputs.terms
            and not layer.signature.is_depthwise
            and isinstance(kind_of(layer_at(self.graph.plan.module, layer.name)), ProductKind)
            and layer.name not in self.statistics.moments
        )

    @property
    def thin(self) -> tuple[tuple[str, Moments], ...]:
        """Layers of which the images know little, beside their columns; the thinnest first."""
        found = [item for item in self.statistics.moments.items() if item[1].is_thin]
        return tuple(sorted(found, key=lambda item: -item[1].shrinkage))

    @property
    def _is_ample(self) -> bool:
        """Whether a fit to all images beats one that leaves some of them to judge it."""
        return not self.thin and len(self._repair_images) >= AMPLE

    def apply(self, strategy: Strategy) -> CompressedNetwork:
        """Build the smaller network: remove, refit, quantize, and repair it quickly.

        Where ``settings.repairs_candidates``, every layer is refitted once more to what it
        receives from those before it, on few images; else BN is recalibrated.

        Raises:
            StrategyError: The strategy does not fit the network.
        """
        kept = self.kept_positions(strategy)
        keep = keep_mask(self.graph, kept)
        module = self._cut(strategy, keep, refit=self.settings.least_squares)
        if self.settings.repairs_candidates:
            refit_layers(
                self.graph,
                module,
                keep,
                self._quick_reference,
                max_columns=self.settings.max_columns,
                ridges=(THIN_RIDGE if self.thin else QUICK_RIDGE,),
                judged={path for path, _ in self.thin},
                feedback=False,
                rectifications=QUICK_RECTIFICATIONS,
            )
        elif self.settings.batch_norm:
            self._recalibrate(module, keep)
        return self._result(module, strategy, kept)

    def _cut(self, strategy: Strategy, keep: KeepMask, *, refit: bool) -> fx.GraphModule:
        """Without the channels that go; with weights refitted by moments if asked for, rounded."""
        fitted = self._refit_all(keep) if refit else {}
        weights = {path: weight for path, (weight, _) in fitted.items()}
        module = remove_channels(self.graph.plan, keep, weights)
        for path, (_, shift) in fitted.items():
            if shift is not None:
                self._shift_output(module, path, shift)
        self._quantize(module, strategy)
        return module

    def repair(self, strategy: Strategy) -> CompressedNetwork:
        """Build the smaller network with every layer refitted to what it really receives.

        Slower than `apply` (thousands of calibration images go through the network), and better:
        for the strategies that are kept. Without ``settings.least_squares`` or
        ``settings.sequential`` it is `apply`.

        Raises:
            StrategyError: The strategy does not fit the network.
        """
        if not (self.settings.least_squares and self.settings.sequential):
            return self.apply(strategy)
        kept = self.kept_positions(strategy)
        keep = keep_mask(self.graph, kept)
        # Few images move a weight only a little: it starts from what the moments say.
        module = self._cut(strategy, keep, refit=not self._is_ample)
        left = called_paths(module) & self.graph.plan.layers.keys()
        with progress_bar("repairing", len(left)) as bar:
            refits = refit_layers(
                self.graph,
                module,
                keep,
                self._reference,
                max_columns=self.settings.max_columns,
                ridges=RIDGES[:1] if self._is_ample else RIDGES,
                judged=() if self._is_ample else None,
                on_layer=lambda path: bar.advance(note=path),
            )
        module, notes = self._least_harmed(strategy, keep, module)
        notes += () if notes else _refusals(refits)
        return replace(self._result(module, strategy, kept), notes=notes)

    def _least_harmed(
        self, strategy: Strategy, keep: KeepMask, repaired: fx.GraphModule
    ) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """The repaired network, or what diverges less on images that it was not fitted to."""
        if not len(self._held_images):
            return repaired, ()
        best, found, notes = repaired, self._divergences(repaired), tuple[str, ...]()
        least, first = found, float(found.mean())
        others = (
            ("least squares from moments", True, self.settings.batch_norm),
            ("BN recalibration", False, self.settings.batch_norm),
            ("no repair", False, False),
        )
        for name, refit, recalibrated in others:
            other = self._cut(strategy, keep, refit=refit)
            if recalibrated:
                self._recalibrate(other, keep)
            found = self._divergences(other)
            if _is_clearly_less(found, least):
                best, least = other, found
                notes = (
                    f"The repair layer by layer was refused: on {len(self._held_images)} "
                    "calibration images that it was not fitted to it diverges by "
                    f"{first:.3g} nats from the original; {name}: {float(found.mean()):.3g}.",
                )
        return best, notes

    def _divergences(self, module: nn.Module) -> Tensor:
        """From the original, in nats, of each image that a repair is not fitted to; (images,)."""
        given = _outputs(module, self._held_images)
        return self._objective.divergence(given, self._held_outputs)

    @cached_property
    def _held_outputs(self) -> Tensor:
        return _outputs(self.graph.plan.module, self._held_images)

    @cached_property
    def _reference(self) -> Reference:
        """What the repair of kept strategies aims at; gathered for the first of them."""
        return self._gather(self._repair_images, ROWS)

    @cached_property
    def _quick_reference(self) -> Reference:
        """What the repair of every candidate aims at."""
        return self._gather(self._images[: self.settings.quick_images], QUICK_ROWS)

    def _gather(self, images: Tensor, rows: int) -> Reference:
        with progress_bar("noting the original", len(self.graph.plan.layers)) as bar:
            return gather_reference(
                self.graph,
                images,
                positions=min(max(1, rows // len(images)), POSITIONS),
                stream_correction=self.settings.stream_correction,
                rectified=self.settings.rectified,
                on_layer=lambda path: bar.advance(note=path),
            )

    def kept_positions(self, strategy: Strategy) -> dict[int, npt.NDArray[np.int64]]:
        """Group index -> sorted positions of the channels that the strategy keeps."""
        counts = self.graph.kept_counts(strategy)
        return {
            index: np.sort(path.order[len(path.order) - counts[index] :])
            for index, path in self.paths.items()
        }

    def errors(self, pairs: Sequence[Bits], *, drop_blocks: bool = False) -> LayerErrors:
        """What every decision costs, estimated without an evaluation; bits among ``pairs``.

        Where images are few, on one half of them for layers refitted to the other, and the other
        way round: a late layer's refit to few images costs ten times as much on others.

        Args:
            drop_blocks: Whether residual blocks may go: what that costs is found by leaving each
                of them out, for layers behind it repair most of it.

        Raises:
            CalibrationError: The network's gradients are not finite.
        """
        images, most = self._images, self.settings.error_images
        blocks = self._block_errors() if drop_blocks else {}
        folds = [(self.statistics, images[:most])]
        if not self._is_ample and len(images) >= FEWEST_CROSSED:
            halves = images[::2], images[1::2]
            folds = [
                (self._fitted_to(one), other[: most // 2]) for one, other in (halves, halves[::-1])
            ]
        return mean_errors(
            [
                layer_errors(
                    self.graph,
                    judging,
                    statistics,
                    self.paths,
                    partial(self._removed, moments=statistics.moments),
                    pairs,
                    blocks,
                    self._objective,
                )
                for statistics, judging in folds
            ]
        )

    def _fitted_to(self, images: Tensor) -> CalibrationStatistics:
        """Moments of some of the calibration images alone; sampled inputs of all."""
        found = gather_statistics(self.graph, images, max_columns=self.settings.max_columns)
        return replace(found, values=self.statistics.values)

    def _block_errors(self) -> dict[int, float]:
        """Group -> divergence, in nats, once its residual block is gone and the rest repaired.

        On images that the repair of candidates does not see, as far as there are others.
        """
        first = min(self.settings.quick_images, len(self._images) - self.settings.error_images)
        images = self._images[max(first, 0) :][: self.settings.error_images]
        found: dict[int, float] = {}
        with progress_bar("leaving out blocks", len(self.graph.plan.blocks)) as bar:
            original = _outputs(self.graph.plan.module, images)
            for block in self.graph.plan.blocks:
                name = self.graph.groups[block.group].name
                given = _outputs(self.apply(Strategy({name: 0.0}, {})).module, images)
                divergence = self._objective.divergence(given, original)
                found[block.group] = max(float(divergence.mean()), 0.0)
                bar.advance(note=block.end)
        return found

    def _removed(
        self, group: int, count: int, moments: Mapping[str, Moments]
    ) -> Mapping[str, OutputChange]:
        """What keeping so many channels of one group does to its readers, once refitted."""
        order = self.paths[group].order
        keep = keep_mask(self.graph, {group: np.sort(order[len(order) - count :])})
        changes: dict[str, OutputChange] = {}
        for path, units in self.graph.plan.layers.items():
            layer = layer_at(self.graph.plan.module, path)
            kind, inputs = kind_of(layer), keep[units.inputs]
            if inputs.all() or kind.is_depthwise(layer):
                continue
            if not isinstance(kind, ProductKind):
                gone = kind.columns(layer, torch.from_numpy(np.flatnonzero(~inputs)))
                changes[path] = kind.without(layer, gone)
                continue
            kept = torch.from_numpy(np.flatnonzero(inputs[: layer.weight.shape[1]]))
            change = -layer.weight.detach()
            shift = None
            if path in moments and self.settings.least_squares:
                weight, shift = self._refit_all_outputs(path, keep, moments[path])
                change[:, kept] += weight
            else:
                change[:, kept] = 0
            changes[path] = LinearChange(change, shift)
        return changes

    def _result(
        self, module: fx.GraphModule, strategy: Strategy, kept: dict[int, npt.NDArray[np.int64]]
    ) -> CompressedNetwork:
        names = {self.graph.groups[i].name: tuple(p.tolist()) for i, p in kept.items()}
        return CompressedNetwork(module, strategy, names)

    def _refit_all(self, keep: KeepMask) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Layer path -> its weight, and what its output then lacks on average."""
        gone = {path for block in self.graph.plan.gone_blocks(keep) for path in block.layers}
        paths = [path for path in self.statistics.moments if path not in gone]
        fitted = {path: self._refit(path, keep) for path in paths}
        return {path: result for path, result in fitted.items() if result is not None}

    def _recalibrate(self, module: nn.Module, keep: KeepMask) -> None:
        recalibrate(module, self._norm_images)
        kept = {
            path: torch.from_numpy(np.flatnonzero(keep[units]))
            for path, units in self.graph.plan.per_channel.items()
        }
        add_drift(module, self._drifts, kept)

    def _shift_output(self, module: nn.Module, path: str, shift: Tensor) -> None:
        """Add a constant to a layer's outputs: to its bias, or off the mean that follows it."""
        layer = layer_at(module, path)
        if layer.bias is not None:
            layer.bias.data += shift
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
            full = self._refit_all_outputs(path, keep, self.statistics.moments[path])
            self._weights.put(key, full)
        weight, shift = full
        outputs = torch.from_numpy(np.flatnonzero(keep[units.outputs]))
        return weight[outputs], None if shift is None else shift[outputs]

    def _refit_all_outputs(
        self, path: str, keep: KeepMask, moments: Moments
    ) -> tuple[Tensor, Tensor | None]:
        layer = layer_at(self.graph.plan.module, path)
        columns = column_units(layer, self.graph.plan.layers[path].inputs)[:: moments.places]
        kept = torch.from_numpy(np.flatnonzero(keep[columns]))
        groups, places = len(moments.mean), moments.places
        weight = by_channel(layer.weight.detach(), groups, places)
        centred = absorbs_shift(self.graph, path)
        gram = moments.system(centred)
        fitted = refit_weight(weight, gram, kept)
        shift = None
        if centred:
            mean = moments.mean.unsqueeze(2)  # (groups, columns, 1)
            shift = weight @ mean - fitted @ mean[:, kept]
            shift = shift.reshape(len(layer.weight), places).sum(1)
        fitted = by_place(fitted, places)
        return fitted.reshape(len(layer.weight), -1, *layer.weight.shape[2:]), shift

    def _quantize(self, module: fx.GraphModule, strategy: Strategy) -> None:
        called = called_paths(module)
        for path, bits in strategy.bits.items():
            if not bits.is_float and path in called:
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


def _refusals(refits: Sequence[Refit]) -> tuple[str, ...]:
    """A note on the layers whose refit other images did not confirm."""
    refused = [refit for refit in refits if refit.refused > 0.5]
    if not refused:
        return ()
    most = max(refused, key=lambda refit: refit.refused)
    return (
        f"Not refitted, being no better for it on images it was not fitted to: most outputs of "
        f"{len(refused)} of {len(refits)} layers, {most.path!r} among them ({most.images} "
        f"images, {most.columns} columns).",
    )


def _outputs(module: nn.Module, images: Tensor) -> Tensor:
    """Shape (n, ...), float64."""
    with torch.no_grad():
        outputs = torch.cat([module(batch) for batch in torch.split(images, BATCH)])
    return outputs.double()


def _is_clearly_less(found: Tensor, least: Tensor) -> bool:
    """Whether the mean of what was found is less by more than its standard error, image by image.

    Of a few images one that happens to suit it would do otherwise. What is not finite is the most.
    """
    if not bool(found.isfinite().all()):
        return False
    if not bool(least.isfinite().all()):
        return True
    gain = least - found
    error = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else gain.abs().sum()
    return bool(gain.mean() > error)


def _weighed(images: Tensor) -> int:
    """How many of them outputs are weighed on, at most: a gradient says more of a large image."""
    return max(BATCH, WEIGHED_PIXELS // images[0, 0].numel())


def _shape_of(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width


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
    called = called_paths(module)
    for path, bits in strategy.bits.items():
        if bits != FLOAT and path in called:
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
