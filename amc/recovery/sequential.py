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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, fx

from amc.compress.quantization import Quantized
from amc.compress.removal import KeepMask
from amc.decisions.forms import forms_of
from amc.graph.graph import NetworkGraph
from amc.layers import ProductKind, is_depthwise, kind_of, layer_at, product_of
from amc.layers.norms import is_batch_norm
from amc.recovery.aims import Aim, Aims, Job
from amc.recovery.descent import system_of
from amc.recovery.fitting import FITTED, RIDGES, Choice, Solver, Sums, choose, rescaled
from amc.recovery.reference import Execution, Reference
from amc.recovery.rounding import has_free_others, rounded_weight, write_weight
from amc.recovery.zeros import without

MAX_COLUMNS = 2304  # wider layers are refitted within what their rows span
ROWS_PER_SPAN = 4  # rows that are fitted to, for each that spans
EXACT_BITS = 8  # of a weight: what such rounding costs needs no refit of a depthwise layer
RECTIFICATIONS = 3  # times that a layer before a ReLU is solved anew; more change little
RECTIFICATIONS_OF_ZEROS = 8  # of one with zeros, whose output lacks more


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
    sensitivities: Mapping[str, Tensor] | None = None,
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
        sensitivities: Layer path -> what a unit of squared error of each of the original's outputs
            costs, (outputs,): which of a layer's weights become zero or share a value goes by it.
        ridges: Pulls towards the weights that the layers have, in mean input energies; each
            layer takes the one that serves best on images that a fit has not seen, and each
            output the refit, a new factor, or what it has (`amc.recovery.fitting`).
        judged: Layers of which that is asked; the others take the first ridge. None: all.
        feedback: Round weights with error feedback; else to the nearest, which is faster. Zeros
            and codebooks are found more thoroughly, too.
        rectifications: How often a layer before an activation that clips is solved anew.
        on_layer: Called with the path of each layer that is done.

    Raises:
        CalibrationError: What a layer receives is not finite.
    """
    repair = _Repair(
        graph,
        smaller,
        keep,
        reference,
        sensitivities or {},
        max_columns,
        ridges,
        judged,
        feedback,
        rectifications,
    )
    left, done = set(graph.plan.layers), list[Refit]()
    with torch.no_grad():
        for node in repair.run.nodes:
            path = str(node.target)
            is_next = node.op == "call_module" and path in left
            if is_next and path not in repair.shifted:
                found = repair.refit(path, repair.run.values(node.all_input_nodes[0]))
                done += [] if found is None else [found]
            repair.run.advance(node)
            if is_next:
                if path in repair.shifted:
                    repair.shift(path, repair.run.values(node))
                left.remove(path)
                on_layer(path)
    return done


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


class _Repair:
    """The smaller network on the calibration images, repaired on the way."""

    def __init__(
        self,
        graph: NetworkGraph,
        smaller: fx.GraphModule,
        keep: KeepMask,
        reference: Reference,
        sensitivities: Mapping[str, Tensor],
        max_columns: int,
        ridges: Sequence[float],
        judged: Collection[str] | None,
        feedback: bool,
        rectifications: int,
    ) -> None:
        self._graph, self._smaller, self._keep = graph, smaller, keep
        self._reference, self._max_columns = reference, max_columns
        self._sensitivities = sensitivities
        self._judged = frozenset(graph.plan.layers if judged is None else judged)
        self._ridges, self._feedback, self._rectifications = ridges, feedback, rectifications
        calls = (str(n.target) for n in smaller.graph.nodes if n.op == "call_module")
        self._calls = Counter(calls)
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}
        self.shifted = frozenset(path for path in graph.plan.layers if self._is_shifted(path))
        folded = {path: norm for path, norm in self._norms.items() if path not in self.shifted}
        self.run = Execution(smaller, reference.batches, folded)
        self._aims = Aims(graph, smaller, keep, reference, self.run)

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

    def _job(self, path: str) -> Job:
        norm = self._norms.get(path)
        module = None if norm is None else self._smaller.get_submodule(norm)
        kept = np.flatnonzero(self._keep[self._graph.plan.layers[path].outputs])
        return Job(
            path,
            layer_at(self._smaller, path),
            module if is_batch_norm(module) else None,
            torch.from_numpy(kept),
        )

    def shift(self, path: str, values: Sequence[object]) -> None:
        """Make right on average what a layer has just given."""
        job, given = self._job(path), []
        if not job.is_centred:
            return
        layer, kind = job.layer, kind_of(job.layer)
        for batch, value in enumerate(values):
            assert isinstance(value, Tensor)
            generator = self._reference.generator(batch)
            given.append(kind.output_rows(value, generator, self._reference.positions[path]))
        wanted = [t.output.index_select(1, job.outputs) for t in self._reference.targets[path]]
        lacks = (_row_mean(wanted) - _row_mean(given)).to(layer.weight.dtype)
        if layer.bias is None:
            self._move_mean(job, lacks)
            return
        layer.bias.data = layer.bias.data + lacks
        for value in values:
            assert isinstance(value, Tensor)
            value += kind.spread(lacks, value.dim())

    def refit(self, path: str, received: Sequence[object]) -> Refit | None:
        """Write the least-squares solution into the smaller network's layer; None: it is left."""
        if self._calls[path] > 1:
            return None
        job = self._job(path)
        layer, centred, aims = job.layer, job.is_centred, self._aims.of(job)
        images = [len(batch) for batch in self._reference.batches]
        inputs, judging = self._inputs(job, received), path in self._judged
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
            forms = span is None and bool(forms_of(layer))  # which look at all outputs
            gram = sums.gram(centred, FITTED) if forms else None
            rounded = partial(rounded_weight, layer, gram=gram) if span is None else _as_it_is
            importance = job.factors(now).squeeze(1).double().square()
            what = f"the inputs of layer {path!r}"
            choice = choose(
                sums, now, centred, importance, rounded, what, self._ridges, alone=not forms
            )
        solve = self._solver(job, sums, now, choice)
        is_clipped = centred and path in self._reference.clips
        weight = now if solve is None else solve(sums.cross(centred))
        if solve is not None and is_clipped:
            weight = self._rectified(job, aims, sums, solve, weight)
        if not choice.refit.all():
            given = sums.gram(centred) @ now.transpose(1, 2)
            factored = rescaled(now, given, sums.cross(centred))
            factored = torch.where(choice.rescale[..., None], factored, now)
            weight = torch.where(choice.refit[..., None], weight, factored)
        if span is not None:
            write_weight(layer, whole + weight @ span.double(), None)
        else:
            write_weight(
                layer,
                weight,
                sums.gram(centred),
                importance=self._importance(job, groups),
                feedback=self._feedback,
            )
            if solve is not None and is_clipped and has_free_others(layer):
                self._rectify_others(job, aims, sums, solve, choice)
        if centred:
            self._set_mean(job, *(means or sums.means()))
        refused = float((choice.needed & ~choice.refit).double().mean())
        return Refit(path, choice.ridge, refused, sum(images), columns)

    def _solver(self, job: Job, sums: Sums, now: Tensor, choice: Choice) -> Solver | None:
        """What gives the weight by least squares; None where no output is to have it."""
        if not choice.refit.any():
            return None
        what = f"the inputs of layer {job.path!r}"
        return Solver(now, sums.gram(job.is_centred), choice.ridge, what)

    def _rectified(
        self,
        job: Job,
        aims: Sequence[Aim],
        sums: Sums,
        solve: Solver,
        weight: Tensor,
        form: Callable[[Tensor], Tensor] = _as_it_is,
        turns: int | None = None,
    ) -> Tensor:
        """A weight solved anew for what the activation after the layer lets through of it.

        Args:
            weight: What the layer has now.
            form: Of what is solved for, the best that the layer may have.
            turns: Times; None: as often as is asked for.
        """
        factor = job.factors(weight)
        for _ in range(self._rectifications if turns is None else turns):
            sums.aim_at(self._aims.behind(job, aims, sums.outputs(weight), factor))
            weight = form(solve(sums.cross(job.is_centred)))
        return weight

    def _rectify_others(
        self, job: Job, aims: Sequence[Aim], sums: Sums, solve: Solver, choice: Choice
    ) -> None:
        """Look through the activation once more, now that some weights are zero.

        Zeros take far more from an output than channels before it do, and what they take where
        the activation gives nothing anyway need not be made up for. Which weights are zero stays.
        """
        layer, gram = job.layer, sums.gram(job.is_centred)
        now = layer.weight.double().reshape(*choice.refit.shape, -1)
        system = system_of(gram, f"the inputs of layer {job.path!r}, some of them at zero")
        others = partial(without, system=system, gone=now == 0)
        turns = RECTIFICATIONS_OF_ZEROS if self._feedback else None
        found = self._rectified(job, aims, sums, solve, now, others, turns)
        found = torch.where(choice.refit[..., None], found, now)
        layer.weight.data = found.reshape(layer.weight.shape).to(layer.weight.dtype)

    def _importance(self, job: Job, groups: int) -> Tensor | None:
        """Of each output's squared error, (groups, outputs / groups)."""
        found = self._sensitivities.get(job.path)
        return None if found is None else found[job.outputs].reshape(groups, -1)

    def _set_mean(self, job: Job, x_mean: Tensor, y_mean: Tensor) -> None:
        """Make the layer's output right on average, by its bias or by the mean that follows it."""
        layer = job.layer
        held = layer.quantized_weight() if isinstance(layer, Quantized) else layer.weight
        weight = held.double().reshape(len(x_mean), -1, x_mean.shape[1])
        lacks = y_mean - (weight @ x_mean.unsqueeze(2)).squeeze(2)  # (groups, outputs / groups)
        lacks = lacks.flatten().to(layer.weight.dtype)
        if layer.bias is not None:
            layer.bias.data = lacks
        else:
            self._move_mean(job, lacks)

    def _move_mean(self, job: Job, lacks: Tensor) -> None:
        """Have the normalisation after a layer make up for what its outputs lack on average."""
        if job.norm is None or job.norm.running_mean is None:
            return
        # From the original's mean: the smaller network's may have been shifted already.
        original = self._graph.plan.module.get_submodule(self._norms[job.path])
        assert is_batch_norm(original)
        assert original.running_mean is not None
        job.norm.running_mean.data = original.running_mean[job.outputs] - lacks

    def _inputs(self, job: Job, received: Sequence[object]) -> list[Tensor]:
        """What the smaller network's layer receives, a batch each, (groups, rows, columns)."""
        layer, kind, inputs = job.layer, product_of(job.layer), []
        for batch, x in enumerate(received):
            assert isinstance(x, Tensor)
            seen = layer.quantized_input(x) if isinstance(layer, Quantized) else x
            generator = self._reference.generator(batch)
            inputs.append(kind.rows(layer, seen, generator, self._reference.positions[job.path]))
        return inputs


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
