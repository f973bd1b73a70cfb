"""Repairing a smaller network layer by layer, each to what it really receives.

At each layer, moments are taken of the input that the *smaller* network's layer receives (after
everything repaired before it) and of the output that the *original*'s layer gives; their
least-squares solution is the new weight, rounded with error feedback where bits are few. Where the
layer's (normalised) output is added to a stream, the target is the original sum minus the smaller
network's own stream: each block repairs what earlier blocks broke. What a ReLU after it throws
away is not aimed at (`amc.recovery.rectified`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from amc.compress.quantization import Quantized
from amc.compress.removal import KeepMask
from amc.graph.blocks import called_paths, heir_of
from amc.graph.graph import NetworkGraph
from amc.layers import Layer, ProductKind, is_depthwise, kind_of, layer_at, product_of
from amc.layers.norms import BatchNorm, factor_of, is_batch_norm, normalised
from amc.recovery.fitting import RIDGES, Choice, Solver, Sums, choose, rescaled
from amc.recovery.reference import SMALLEST_FACTOR, Execution, Reference, Target
from amc.recovery.rounding import rounded_weight, write_weight

MAX_COLUMNS = 2304  # wider layers are refitted within what their rows span
ROWS_PER_SPAN = 4  # rows that are fitted to, for each that spans
EXACT_BITS = 8  # of a weight: what such rounding costs needs no refit of a depthwise layer
RECTIFICATIONS = 3  # times that a layer before a ReLU is solved anew; more change little


@dataclass(frozen=True)
class _Aim:
    """What a layer should give, at the sampled positions of one batch.

    Attributes:
        y: Its output, (groups, rows, outputs / groups).
        wanted: What the original's activation receives there, shaped as y; None where the
            layer's output is read as it is.
    """

    y: Tensor
    wanted: Tensor | None


@dataclass(frozen=True)
class Refit:
    """How a layer was refitted.

    Attributes:
        path: Of the layer.
        ridge: How strongly the fit was pulled to the weight that the layer had.
        refused: Share of its outputs that lack something and yet keep the weight they had (or
            that times a factor): on images that it was not fitted to, a refit was no better.
        images, columns: What it was fitted to, and what of: thin where images are the fewer.
    """

    path: str
    ridge: float
    refused: float
    images: int
    columns: int


def refit_layers(
    graph: NetworkGraph,
    smaller: fx.GraphModule,
    keep: KeepMask,
    reference: Reference,
    *,
    max_columns: int = MAX_COLUMNS,
    ridges: Sequence[float] = RIDGES,
    judged: Collection[str] | None = None,
    feedback: bool = True,
    rectifications: int = RECTIFICATIONS,
    on_layer: Callable[[str], None] = lambda _: None,
) -> list[Refit]:
    """Refit every layer of ``smaller`` in place, in execution order.

    Layers that are called more than once keep the weights that they have. A layer of more than
    ``max_columns`` inputs (times kernel area) is changed only within what some rows of its inputs
    span, no more than so many: it sees little else.

    Args:
        smaller: The network with channels removed (and layers quantized).
        keep: The units that it kept.
        reference: What the original's layers give (`amc.recovery.reference.gather_reference`).
        ridges: Pulls towards the weights that the layers have, in mean input energies; each
            layer takes the one that serves best on images that a fit has not seen, and each
            output the refit, a new factor, or what it has (`amc.recovery.fitting`).
        judged: Layers of which that is asked; the others take the first ridge. None: all.
        feedback: Round weights with error feedback; else to the nearest, which is faster.
        rectifications: How often a layer before an activation that clips is solved anew.
        on_layer: Called with the path of each layer that is done.

    Raises:
        CalibrationError: What a layer receives is not finite.
    """
    repair = _Repair(
        graph, smaller, keep, reference, max_columns, ridges, judged, feedback, rectifications
    )
    left, done = set(graph.plan.layers), list[Refit]()
    with torch.no_grad():
        for node in repair.run.nodes:
            path = str(node.target)
            is_next = node.op == "call_module" and path in left
            if is_next and path not in repair.shifted:
                found = repair.refit(node)
                done += [] if found is None else [found]
            repair.run.advance(node)
            if is_next:
                if path in repair.shifted:
                    repair.shift(node)
                left.remove(path)
                on_layer(path)
    return done


class _Repair:
    """The smaller network on the calibration images, repaired on the way."""

    def __init__(
        self,
        graph: NetworkGraph,
        smaller: fx.GraphModule,
        keep: KeepMask,
        reference: Reference,
        max_columns: int,
        ridges: Sequence[float],
        judged: Collection[str] | None,
        feedback: bool,
        rectifications: int,
    ) -> None:
        self._graph, self._smaller, self._keep = graph, smaller, keep
        self._reference, self._max_columns = reference, max_columns
        self._judged = frozenset(graph.plan.layers if judged is None else judged)
        self._ridges, self._feedback, self._rectifications = ridges, feedback, rectifications
        calls = (str(n.target) for n in smaller.graph.nodes if n.op == "call_module")
        self._calls = Counter(calls)
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}
        self.shifted = frozenset(path for path in graph.plan.layers if self._is_shifted(path))
        folded = {path: norm for path, norm in self._norms.items() if path not in self.shifted}
        self.run = Execution(smaller, reference.batches, folded)
        self._stream_nodes = _same_nodes(graph, smaller, keep, reference)

    def _is_shifted(self, path: str) -> bool:
        """Whether a layer loses no input, and only the mean of what it gives is made right.

        That is so of a depthwise layer, whose channels are there whole or not at all: refitted to
        its inputs as they are now it is no better (docs/ablations.md), and takes most of the time.
        Rounded to few bits, it is refitted as others are. Of a layer that is no product there is
        no least squares.
        """
        if self._calls[path] != 1:
            return False
        original = layer_at(self._graph.plan.module, path)
        if not isinstance(kind_of(original), ProductKind):
            return True
        layer = self._smaller.get_submodule(path)
        is_coarse = isinstance(layer, Quantized) and layer.bits.weight < EXACT_BITS
        return is_depthwise(original) and not is_coarse

    def shift(self, node: fx.Node) -> None:
        """Make right on average what a layer has just given."""
        path = str(node.target)
        layer = layer_at(self._smaller, path)
        norm, kind = self._norm_after(path), kind_of(layer)
        if layer.bias is None and norm is None:
            return
        values = self.run.values(node)
        given = []
        for batch, value in enumerate(values):
            assert isinstance(value, Tensor)
            generator = self._reference.generator(batch)
            given.append(kind.output_rows(value, generator, self._reference.positions[path]))
        outputs = self._kept_outputs(path)
        wanted = [t.output.index_select(1, outputs) for t in self._reference.targets[path]]
        lacks = (_row_mean(wanted) - _row_mean(given)).to(layer.weight.dtype)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data + lacks
            for value in values:
                assert isinstance(value, Tensor)
                value += kind.spread(lacks, value.dim())
        else:
            self._move_mean(path, norm, lacks)

    def _kept_outputs(self, path: str) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self._keep[self._graph.plan.layers[path].outputs]))

    def refit(self, node: fx.Node) -> Refit | None:
        """Write the least-squares solution into the smaller network's layer; None: it is left."""
        path = str(node.target)
        layer = layer_at(self._smaller, path)
        if self._calls[path] > 1:
            return None
        norm = self._norm_after(path)
        aims = self._aims(node, layer, norm)
        images = [len(batch) for batch in self._reference.batches]
        inputs, judging = self._inputs(node, layer), path in self._judged
        centred = layer.bias is not None or norm is not None
        groups, _, columns = inputs[0].shape
        whole = now = layer.weight.double().reshape(groups, -1, columns)
        span, means = None, None
        if columns > self._max_columns:
            means = _mean(inputs), _mean([aim.y for aim in aims])
            span = _span(inputs, means[0], self._max_columns)
            lacks = [aim.y - _product(x, whole) for aim, x in zip(aims, inputs, strict=True)]
            aims = [replace(aim, y=y) for aim, y in zip(aims, lacks, strict=True)]
            inputs = [_product(x, span) for x in inputs]
            now = now.new_zeros(groups, now.shape[1], span.shape[1])
        sums = Sums(inputs, [aim.y for aim in aims], images, judging=judging)
        choice = Choice.unjudged(now, self._ridges[0])
        if judging:
            rounded = (lambda w: w) if span is not None else (lambda w: rounded_weight(layer, w))
            choice = self._choice(path, norm, sums, now, centred, rounded)
        weight = self._solved(path, aims, sums, norm, now, choice, centred)
        if not choice.refit.all():
            factored = rescaled(now, sums.gram(centred), sums.cross(centred))
            factored = torch.where(choice.rescale[..., None], factored, now)
            weight = torch.where(choice.refit[..., None], weight, factored)
        if span is not None:
            write_weight(layer, whole + weight @ span.double(), None)
        else:
            write_weight(layer, weight, sums.gram(centred) if self._feedback else None)
        if centred:
            self._set_mean(path, layer, norm, *(means or sums.means()))
        refused = float((choice.needed & ~choice.refit).double().mean())
        return Refit(path, choice.ridge, refused, sum(images), columns)

    def _choice(
        self,
        path: str,
        norm: BatchNorm | None,
        sums: Sums,
        now: Tensor,
        centred: bool,
        rounded: Callable[[Tensor], Tensor],
    ) -> Choice:
        importance = _factors(norm, now).squeeze(1).double().square()
        what = f"the inputs of layer {path!r}"
        return choose(sums, now, centred, importance, rounded, what, self._ridges)

    def _solved(
        self,
        path: str,
        aims: Sequence[_Aim],
        sums: Sums,
        norm: BatchNorm | None,
        now: Tensor,
        choice: Choice,
        centred: bool,
    ) -> Tensor:
        """The weight by least squares; the present one where no output is to have it."""
        if not choice.refit.any():
            return now
        what = f"the inputs of layer {path!r}"
        solve = Solver(now, sums.gram(centred), choice.ridge, what)
        weight = solve(sums.cross(centred))
        if centred and path in self._reference.clips:
            factor = _factors(norm, weight)
            for _ in range(self._rectifications):
                sums.aim_at(self._aims_behind(path, aims, sums.outputs(weight), factor))
                weight = solve(sums.cross(centred))
        return weight

    def _aims_behind(
        self, path: str, aims: Sequence[_Aim], outputs: Sequence[Tensor], factor: Tensor
    ) -> list[Tensor]:
        """What the layer should give, now that it gives ``outputs`` (`amc.recovery.rectified`)."""
        clip, found = self._reference.clips[path], []
        counts = factor.abs() >= SMALLEST_FACTOR
        inverse = torch.where(counts, 1 / factor, 0.0)  # what hardly counts aims where it did
        for aim, given in zip(aims, outputs, strict=True):
            if aim.wanted is None:
                found.append(aim.y)
                continue
            received = torch.addcmul(aim.wanted, factor, given - aim.y)
            change = clip.aims(aim.wanted, received).sub_(aim.wanted)
            found.append(torch.addcmul(aim.y, change, inverse))
        return found

    def _set_mean(
        self, path: str, layer: Layer, norm: BatchNorm | None, x_mean: Tensor, y_mean: Tensor
    ) -> None:
        """Make the layer's output right on average, by its bias or by the mean that follows it."""
        held = layer.quantized_weight() if isinstance(layer, Quantized) else layer.weight
        weight = held.double().reshape(len(x_mean), -1, x_mean.shape[1])
        lacks = y_mean - (weight @ x_mean.unsqueeze(2)).squeeze(2)  # (groups, outputs / groups)
        lacks = lacks.flatten().to(layer.weight.dtype)
        if layer.bias is not None:
            layer.bias.data = lacks
        else:
            self._move_mean(path, norm, lacks)

    def _move_mean(self, path: str, norm: BatchNorm | None, lacks: Tensor) -> None:
        """Have the normalisation after a layer make up for what its outputs lack on average."""
        if norm is None or norm.running_mean is None:
            return
        # From the original's mean: the smaller network's may have been shifted already.
        original = self._graph.plan.module.get_submodule(self._norms[path])
        assert is_batch_norm(original)
        assert original.running_mean is not None
        norm.running_mean.data = original.running_mean[self._kept_outputs(path)] - lacks

    def _norm_after(self, path: str) -> BatchNorm | None:
        norm = self._norms.get(path)
        module = None if norm is None else self._smaller.get_submodule(norm)
        return module if is_batch_norm(module) else None

    def _inputs(self, node: fx.Node, layer: Layer) -> list[Tensor]:
        """What the smaller network's layer receives, a batch each, (groups, rows, columns)."""
        reference, inputs = self._reference, []
        for batch, received in enumerate(self.run.values(node.all_input_nodes[0])):
            assert isinstance(received, Tensor)
            if isinstance(layer, Quantized):
                received = layer.quantized_input(received)
            generator = reference.generator(batch)
            positions = reference.positions[str(node.target)]
            inputs.append(product_of(layer).rows(layer, received, generator, positions))
        return inputs

    def _aims(self, node: fx.Node, layer: Layer, norm: BatchNorm | None) -> list[_Aim]:
        """What the smaller network's layer should give, a batch each."""
        path = str(node.target)
        outputs = self._kept_outputs(path)
        groups = kind_of(layer).groups(layer)

        def grouped(y: Tensor) -> Tensor:
            return y.reshape(len(y), groups, -1).transpose(0, 1)  # (groups, rows, outputs / groups)

        aims = []
        for batch, target in enumerate(self._reference.targets[path]):
            output = target.output.index_select(1, outputs)
            y = self._target(path, layer, target, output, outputs, norm, batch)
            wanted = self._wanted(path, target, output, outputs, norm)
            aims.append(_Aim(grouped(y), None if wanted is None else grouped(wanted)))
        return aims

    def _corrects(self, path: str, norm: BatchNorm | None) -> bool:
        """Whether the layer can repair the stream that its output is added to."""
        if path not in self._stream_nodes:
            return False
        return norm is None or float(factor_of(norm).abs().min()) >= SMALLEST_FACTOR

    def _wanted(
        self, path: str, target: Target, wanted: Tensor, outputs: Tensor, norm: BatchNorm | None
    ) -> Tensor | None:
        """What the original's activation receives, (rows, kept outputs); None: none that clips.

        Args:
            wanted: What the original's layer gives, (rows, kept outputs).
        """
        if path not in self._reference.clips:
            return None
        if path in self._norms:
            original = self._graph.plan.module.get_submodule(self._norms[path])
            assert is_batch_norm(original)
            wanted = normalised(original, wanted, outputs)
        if path not in self._reference.streams:
            return wanted
        if target.stream is None or not self._corrects(path, norm):
            return None
        return wanted + target.stream.index_select(1, outputs)

    def _target(
        self,
        path: str,
        layer: Layer,
        target: Target,
        wanted: Tensor,
        outputs: Tensor,
        norm: BatchNorm | None,
        batch: int,
    ) -> Tensor:
        """What the layer should give, shape (rows, kept outputs).

        Args:
            wanted: What the original's layer gives, of the same shape.
        """
        factor = None if norm is None else factor_of(norm)
        if target.stream is None or not self._corrects(path, norm):
            return wanted
        ours = self.run.values(self._stream_nodes[path])[batch]
        assert isinstance(ours, Tensor)
        generator = self._reference.generator(batch)
        ours = kind_of(layer).output_rows(ours, generator, self._reference.positions[path])
        difference = target.stream.index_select(1, outputs) - ours
        # BN scales what the layer gives: undo that for the correction.
        return wanted + (difference if factor is None else difference / factor)


def _same_nodes(
    graph: NetworkGraph, smaller: fx.GraphModule, keep: KeepMask, reference: Reference
) -> dict[str, fx.Node]:
    """The streams' nodes in the smaller network's own graph, or what stands in their place."""
    ours = {node.name: node for node in smaller.graph.nodes}
    gone = graph.plan.gone_blocks(keep)
    heirs = {name: heir for block in gone for name, heir in block.heirs.items()}
    left = called_paths(smaller)
    return {
        path: ours[heir_of(stream.other.name, heirs)]
        for path, stream in reference.streams.items()
        if path in left
    }


def _factors(norm: BatchNorm | None, weight: Tensor) -> Tensor:
    """What a layer's outputs are multiplied by after it, (groups, 1, outputs / groups)."""
    factor = torch.ones(weight.shape[:2]) if norm is None else factor_of(norm)
    return factor.reshape(len(weight), 1, -1)


def _mean(batches: Sequence[Tensor]) -> Tensor:
    """Over all rows: (groups, rows, columns) each -> (groups, columns), float64."""
    rows = sum(batch.shape[1] for batch in batches)
    sums = [batch.sum(1, dtype=torch.float64) for batch in batches]
    return torch.stack(sums).sum(0) / rows


def _row_mean(batches: Sequence[Tensor]) -> Tensor:
    """Over all rows: (rows, columns) each -> (columns,), float64."""
    return _mean([batch.unsqueeze(0) for batch in batches]).squeeze(0)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight^T`` for each group."""
    return x @ weight.to(x.dtype).transpose(1, 2)


def _span(batches: Sequence[Tensor], mean: Tensor, most: int) -> Tensor:
    """An orthonormal basis of what evenly chosen rows differ in from their mean.

    Args:
        batches: (groups, rows, columns) each.
        most: Vectors at most.

    Returns:
        Shape (groups, vectors, columns).
    """
    rows = sum(batch.shape[1] for batch in batches)
    count = max(1, min(most, rows // ROWS_PER_SPAN))
    every = rows // count
    chosen = torch.cat([batch[:, ::every] for batch in batches], 1)[:, :count]
    differences = chosen - mean.unsqueeze(1).to(chosen.dtype)
    basis: Tensor = torch.linalg.qr(differences.transpose(1, 2)).Q.transpose(1, 2)
    return basis.contiguous()
