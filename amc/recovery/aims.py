"""What a layer of a smaller network should give.

What the original's layer gives; and where that is added to a stream, so much more as the smaller
network's own stream lacks: each block repairs what earlier blocks broke.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from amc.compress.removal import KeepMask
from amc.graph.blocks import called_paths, heir_of
from amc.graph.graph import NetworkGraph
from amc.layers import Layer, kind_of
from amc.layers.norms import BatchNorm, factor_of, is_batch_norm, normalised
from amc.recovery.reference import SMALLEST_FACTOR, Execution, Reference, Target


@dataclass(frozen=True)
class Job:
    """A layer of the smaller network that is to be repaired.

    Attributes:
        path: Of the layer.
        layer: The smaller network's.
        norm: The normalisation after it that is folded into it where it runs, if there is one.
        outputs: Of the original's outputs those that it has, (outputs,).
    """

    path: str
    layer: Layer
    norm: BatchNorm | None
    outputs: Tensor

    @property
    def is_centred(self) -> bool:
        """Whether its outputs can be made right on average."""
        return self.layer.bias is not None or self.norm is not None

    def factors(self, weight: Tensor) -> Tensor:
        """What its outputs are multiplied by after it, (groups, 1, outputs / groups).

        Args:
            weight: (groups, outputs / groups, columns).
        """
        factor = torch.ones(weight.shape[:2]) if self.norm is None else factor_of(self.norm)
        return factor.reshape(len(weight), 1, -1)


@dataclass(frozen=True)
class Aim:
    """What a layer should give, at the sampled positions of one batch.

    Attributes:
        y: Its output, (groups, rows, outputs / groups).
        wanted: What the original's activation receives there, shaped as y; None where the
            layer's output is read as it is.
    """

    y: Tensor
    wanted: Tensor | None


class Aims:
    """Of all layers of a smaller network, as it is run."""

    def __init__(
        self,
        graph: NetworkGraph,
        smaller: fx.GraphModule,
        keep: KeepMask,
        reference: Reference,
        run: Execution,
    ) -> None:
        self._reference, self._run = reference, run
        norms = {layer: norm for norm, layer in graph.plan.folds.items()}
        self._original_norms = {
            path: graph.plan.module.get_submodule(norm) for path, norm in norms.items()
        }
        self._stream_nodes = _same_nodes(graph, smaller, keep, reference)

    def of(self, job: Job) -> list[Aim]:
        """What the smaller network's layer should give, a batch each."""
        groups = kind_of(job.layer).groups(job.layer)

        def grouped(y: Tensor) -> Tensor:
            return y.reshape(len(y), groups, -1).transpose(0, 1)  # (groups, rows, outputs / groups)

        aims = []
        for batch, target in enumerate(self._reference.targets[job.path]):
            output = target.output.index_select(1, job.outputs)
            y = self._with_stream(job, target, output, batch)
            wanted = self._wanted(job, target, output)
            aims.append(Aim(grouped(y), None if wanted is None else grouped(wanted)))
        return aims

    def behind(
        self, job: Job, aims: Sequence[Aim], outputs: Sequence[Tensor], factor: Tensor
    ) -> list[Tensor]:
        """What the layer should give, now that it gives ``outputs`` (`amc.recovery.rectified`)."""
        clip, found = self._reference.clips[job.path], []
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

    def _corrects(self, job: Job) -> bool:
        """Whether the layer can repair the stream that its output is added to."""
        if job.path not in self._stream_nodes:
            return False
        return job.norm is None or float(factor_of(job.norm).abs().min()) >= SMALLEST_FACTOR

    def _wanted(self, job: Job, target: Target, given: Tensor) -> Tensor | None:
        """What the original's activation receives, (rows, kept outputs); None: none that clips.

        Args:
            given: What the original's layer gives, of the same shape.
        """
        if job.path not in self._reference.clips:
            return None
        norm = self._original_norms.get(job.path)
        wanted = normalised(norm, given, job.outputs) if is_batch_norm(norm) else given
        if job.path not in self._reference.streams:
            return wanted
        if target.stream is None or not self._corrects(job):
            return None
        return wanted + target.stream.index_select(1, job.outputs)

    def _with_stream(self, job: Job, target: Target, given: Tensor, batch: int) -> Tensor:
        """What the layer should give, shape (rows, kept outputs).

        Args:
            given: What the original's layer gives, of the same shape.
        """
        if target.stream is None or not self._corrects(job):
            return given
        ours = self._run.values(self._stream_nodes[job.path])[batch]
        assert isinstance(ours, Tensor)
        generator, count = self._reference.generator(batch), self._reference.positions[job.path]
        ours = kind_of(job.layer).output_rows(ours, generator, count)
        lacks = target.stream.index_select(1, job.outputs) - ours
        # BN scales what the layer gives: undo that for the correction.
        return given + (lacks if job.norm is None else lacks / factor_of(job.norm))


def _same_nodes(
    graph: NetworkGraph, smaller: fx.GraphModule, keep: KeepMask, reference: Reference
) -> Mapping[str, fx.Node]:
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
