"""From a strategy to a smaller network: the one place where compression and recovery meet."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from amc.compress.network import CompressedNetwork, decide, forms_asked
from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.cost.choices import Choices
from amc.decisions.forms import hold
from amc.graph.blocks import called_paths
from amc.graph.graph import NetworkGraph
from amc.layers import ProductKind, kind_of, layer_at
from amc.objectives import DEFAULT, Objective
from amc.objectives.outputs import Outputs, each, joined, outputs_of
from amc.recovery.batch_norm import add_drift, drifts, recalibrate
from amc.recovery.constraints import Constraints
from amc.recovery.errors import Changes, LayerErrors, layer_errors, mean_errors
from amc.recovery.fitting import RIDGES
from amc.recovery.importance import RemovalPath, removal_paths
from amc.recovery.moments import BATCH, CalibrationStatistics, Moments, gather_statistics
from amc.recovery.polish import polish, steps_of
from amc.recovery.reference import Reference, gather_reference
from amc.recovery.refit import MomentRefit
from amc.recovery.rounding import write_weight
from amc.recovery.sensitivity import input_pulls, output_sensitivities
from amc.recovery.sequential import Refit, refit_layers
from amc.recovery.settings import RecoverySettings
from amc.strategy import Strategy
from amc.utils.layout import fast_layout, laid_out
from amc.utils.progress import progress_bar

ROWS = 81_920  # of a layer's inputs in the repair of a kept strategy: few positions, many images
POSITIONS = 128  # of one image at most: more of them tell little more, being alike
QUICK_ROWS = 4_096  # in the repair of a candidate
QUICK_RIDGE = 3e-2  # so few rows must not pull a weight far from what the moments gave
WEIGHED_PIXELS = 256 * 224 * 224  # of all images together
THIN_RIDGE = 1.0  # the same, of a network of which the calibration images know little
QUICK_RECTIFICATIONS = 1  # more fit the few rows, not the network
AMPLE = 512  # images for the repair from which on layers are fitted to all of them
FEWEST_CROSSED = 4  # images: errors of decisions on each half, of layers fitted to the other
HELD_SHARE, HELD_IMAGES = 8, 512  # of the calibration images, one in so many and at most


class Compressor:
    """Applies strategies to one network; everything that can be known before is gathered once."""

    def __init__(
        self,
        graph: NetworkGraph,
        images: Tensor,
        settings: RecoverySettings | None = None,
        objective: Objective = DEFAULT,
        augment: Sequence[str] = (),
    ) -> None:
        """
        Args:
            graph: The traced network.
            images: Normalised calibration images, (n, channels, height, width).
            objective: What divergence from the original's outputs is, and what matters to it.
            augment: What a polish may do to images, as training may
                (`amc.recovery.training_settings.AUGMENTATIONS`).

        Raises:
            CalibrationError: The network's activations on the images are not finite.
        """
        self.graph = graph
        self.settings, self._objective = settings or RecoverySettings(), objective
        self._augment = tuple(augment)
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
            graph,
            self.statistics,
            self.sensitivities,
            self.settings.importance,
            partial(input_pulls, graph, self._images[: _weighed(images)], objective),
        )
        self._refit = MomentRefit(graph, self.statistics.moments)
        self._drifts = drifts(graph.plan.module, self._norm_images)

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

    def prepare(self) -> None:
        """Gather now what the first candidate would wait for."""
        if self.settings.repairs_candidates:
            _ = self._quick_reference

    def apply(self, strategy: Strategy) -> CompressedNetwork:
        """Build the smaller network: remove, refit, quantize, and repair it quickly.

        Where ``settings.repairs_candidates``, every layer is refitted once more to what it
        receives from those before it, on few images; else BN is recalibrated.

        Raises:
            StrategyError: The strategy does not fit the network.
        """
        kept = self.kept_positions(strategy)
        return self._result(self._applied(strategy, keep_mask(self.graph, kept)), strategy, kept)

    def _applied(self, strategy: Strategy, keep: KeepMask) -> fx.GraphModule:
        """The module of `apply`."""
        module = self._cut(strategy, keep, refit=self.settings.least_squares)
        if self.settings.repairs_candidates:
            refit_layers(
                self.graph,
                module,
                keep,
                self._quick_reference,
                sensitivities=self.sensitivities,
                max_columns=self.settings.max_columns,
                ridges=(THIN_RIDGE if self.thin else QUICK_RIDGE,),
                judged={path for path, _ in self.thin},
                feedback=False,
                rectifications=QUICK_RECTIFICATIONS,
            )
            self._decide(module, strategy)
        elif self.settings.batch_norm:
            self._recalibrate(module, keep)
        return module

    def _cut(
        self,
        strategy: Strategy,
        keep: KeepMask,
        *,
        refit: bool,
        among: Collection[str] | None = None,
    ) -> fx.GraphModule:
        """Without the channels that go; with weights refitted by moments if asked for, rounded.

        Args:
            among: The layers that are refitted, if not all.
        """
        fitted = self._refit.all(keep, among) if refit else {}
        weights = {path: weight for path, (weight, _) in fitted.items()}
        module = remove_channels(self.graph.plan, keep, weights)
        for path, (_, shift) in fitted.items():
            if shift is not None:
                self._refit.shift_output(module, path, shift)
        self._bring_into_form(module, strategy, keep)
        self._decide(module, strategy)
        return module

    def _bring_into_form(self, module: fx.GraphModule, strategy: Strategy, keep: KeepMask) -> None:
        """Give layers the forms that decisions ask for, with least error by the moments.

        A repair that comes after it keeps to them; what it leaves alone has them from here.
        """
        called = called_paths(module)
        asked = [(path, form) for path, form in forms_asked(strategy) if path in called]
        for path, form in asked:
            hold(module.get_submodule(path), form)
        for path in dict.fromkeys(path for path, _ in asked):
            layer, units = layer_at(module, path), self.graph.plan.layers[path]
            gram = self._refit.gram(path, keep)
            outputs = torch.from_numpy(np.flatnonzero(keep[units.outputs]))
            groups = 1 if gram is None else len(gram)
            write_weight(
                layer,
                layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1),
                gram,
                importance=self.sensitivities[path][outputs].reshape(groups, -1),
                feedback=False,
            )

    def _decide(self, module: fx.GraphModule, strategy: Strategy) -> None:
        decide(module, strategy, self.statistics.values)

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
        # What is called more than once has only these.
        among = self._refit.repeated if self._is_ample else None
        module = self._cut(strategy, keep, refit=True, among=among)
        left = called_paths(module) & self.graph.plan.layers.keys()
        with progress_bar("repairing", len(left)) as bar:
            refits = refit_layers(
                self.graph,
                module,
                keep,
                self._reference,
                sensitivities=self.sensitivities,
                max_columns=self.settings.max_columns,
                ridges=RIDGES[:1] if self._is_ample else RIDGES,
                judged=() if self._is_ample else None,
                on_layer=lambda path: bar.advance(note=path),
            )
        self._decide(module, strategy)
        module, notes = self._least_harmed(strategy, keep, module)
        notes += () if notes else _refusals(refits)
        if self.settings.polish:
            module, refused = self._polished(strategy, module)
            notes += refused
        return replace(self._result(module, strategy, kept), notes=notes)

    def _least_harmed(
        self, strategy: Strategy, keep: KeepMask, repaired: fx.GraphModule
    ) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """The repaired network, or what diverges less on images that it was not fitted to."""
        if not len(self._held_images):
            return repaired, ()
        best, found, notes = repaired, self._divergences(repaired), tuple[str, ...]()
        least, first = found, float(found.mean())

        def cut(refit: bool, recalibrate: bool) -> fx.GraphModule:
            module = self._cut(strategy, keep, refit=refit)
            if recalibrate and self.settings.batch_norm:
                self._recalibrate(module, keep)
            return module

        others: dict[str, Callable[[], fx.GraphModule]] = {
            "least squares from moments": partial(cut, refit=True, recalibrate=False),
            "the same, and BN recalibration": partial(cut, refit=True, recalibrate=True),
            "BN recalibration": partial(cut, refit=False, recalibrate=True),
            "no repair": partial(cut, refit=False, recalibrate=False),
        }
        if self.settings.repairs_candidates:  # by a fit that is pulled harder, where rows are few
            others = {"the quick repair": partial(self._applied, strategy, keep), **others}
        for name, build in others.items():
            other = build()
            found = self._divergences(other)
            if _is_clearly_less(found, least):
                best, least = other, found
                notes = (
                    f"The repair layer by layer was refused: on {len(self._held_images)} "
                    "calibration images that it was not fitted to it diverges by "
                    f"{first:.3g} nats from the original; {name}: {float(found.mean()):.3g}.",
                )
        return best, notes

    def _polished(
        self, strategy: Strategy, module: fx.GraphModule
    ) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """The network after a polish; as it was where that made it no better on other images."""
        polished = copy.deepcopy(module)
        images, epochs = self._repair_images, self.settings.polish
        with progress_bar("polishing", steps_of(len(images), epochs)) as bar:
            polish(
                polished,
                self.graph.plan.module,
                images,
                epochs=epochs,
                objective=self._objective,
                constraints=Constraints(polished, strategy),
                augment=self._augment,
                on_step=bar.advance,
            )
        if not len(self._held_images):
            return polished, ()
        before, after = self._divergences(module), self._divergences(polished)
        if _is_clearly_less(after, before):
            return polished, ()
        return module, (
            f"The polish was refused: on {len(before)} calibration images that it was not fitted "
            f"to the network diverges by {float(after.mean()):.3g} nats from the original after "
            f"it, and by {float(before.mean()):.3g} before.",
        )

    def _divergences(self, module: nn.Module) -> Tensor:
        """From the original, in nats, of each image that a repair is not fitted to; (images,)."""
        given = _outputs(module, self._held_images)
        return self._objective.divergence(given, self._held_outputs)

    @cached_property
    def _held_outputs(self) -> Outputs:
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

    def errors(self, choices: Choices) -> LayerErrors:
        """What every decision that a walk may take costs, estimated without an evaluation.

        Where images are few, on one half of them for layers refitted to the other, and the other
        way round: a late layer's refit to few images costs ten times as much on others. What it
        costs to leave a residual block out is found by doing so: layers behind it repair most of
        it.

        Raises:
            CalibrationError: The network's gradients are not finite.
        """
        images, most = self._images, self.settings.error_images
        blocks = self._block_errors() if choices.drop_blocks else {}
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
                    choices,
                    blocks,
                    self._objective,
                    self.sensitivities,
                )
                for statistics, judging in folds
            ]
        )

    def _removed(self, group: int, count: int, moments: Mapping[str, Moments]) -> Changes:
        """What keeping so many channels of one group does to its readers, once refitted."""
        order = self.paths[group].order
        keep = keep_mask(self.graph, {group: np.sort(order[len(order) - count :])})
        return self._refit.removed(keep, moments if self.settings.least_squares else {})

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

    def _result(
        self, module: fx.GraphModule, strategy: Strategy, kept: dict[int, npt.NDArray[np.int64]]
    ) -> CompressedNetwork:
        names = {self.graph.groups[i].name: tuple(p.tolist()) for i, p in kept.items()}
        return CompressedNetwork(module, strategy, names)

    def _recalibrate(self, module: nn.Module, keep: KeepMask) -> None:
        recalibrate(module, self._norm_images)
        kept = {
            path: torch.from_numpy(np.flatnonzero(keep[units]))
            for path, units in self.graph.plan.per_channel.items()
        }
        add_drift(module, self._drifts, kept)


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


def _outputs(module: nn.Module, images: Tensor) -> Outputs:
    """Of (n, ...), float64."""
    with torch.no_grad():
        batches = [outputs_of(module(b), len(b)) for b in torch.split(images, BATCH)]
    return each(joined(batches), Tensor.double)


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
