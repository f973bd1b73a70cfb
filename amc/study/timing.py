"""The last networks timed beside the original, on the device where it is this machine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from amc.compress.fold import fold_batch_norm
from amc.compress.removal import keep_mask, remove_channels
from amc.problem.local import calibration_images, time_networks
from amc.problem.task import CompressionTask
from amc.runtimes import ELSEWHERE, Runtime
from amc.study.jury import Finalist
from amc.utils.measure import Share, Timing


@dataclass(frozen=True)
class Times:
    """Of original, uniform and best; and of the best one's channels in float, where it is not."""

    rows: Sequence[Timing | None]
    in_float: Timing | None = None

    @property
    def share(self) -> Share | None:
        """The best one's time compared with the original's."""
        original, best = self.rows[0], self.rows[-1]
        return best.share_of(original) if best and original else None


def time_finalists(task: CompressionTask, even: Finalist, best: Finalist) -> Times:
    """Networks in turn: on the device where it is this machine, else on this machine anyway."""
    runtime = runtime_of(task)
    images = calibration_images(task.data) if runtime.computes_integers else None
    if not runtime.computes_integers:
        modules = _in_float(task, [even, best])
    else:
        modules = [task.reference, even.network.module, best.network.module]
        if not best.strategy.is_float:
            modules.append(_in_float(task, [best])[-1])
    timings = time_networks(
        runtime,
        modules,
        task.data.image_shape,
        batch=batch_of(task),
        threads=task.local.threads if task.local else 1,
        images=images,
    )
    return Times(timings[:3], timings[3] if len(timings) > 3 else None)


def runtime_of(task: CompressionTask) -> Runtime:
    """What networks are timed in."""
    return task.local.runs_on if task.local else ELSEWHERE


def batch_of(task: CompressionTask) -> int:
    """Images of a call, as the device's prices are for, so that both can stand side by side."""
    return int(getattr(task.local or task.device, "batch", 1))


def _in_float(task: CompressionTask, finalists: Sequence[Finalist]) -> list[nn.Module]:
    """Original and finalists with BN folded, all in float.

    For a runtime without integers: what is timed is the channels' gain alone.
    """
    plan = task.graph.plan
    networks: list[nn.Module] = [fold_batch_norm(plan, copy.deepcopy(plan.module))]
    for finalist in finalists:
        kept = task.compressor.kept_positions(finalist.strategy)
        smaller = remove_channels(plan, keep_mask(task.graph, kept))
        networks.append(fold_batch_norm(plan, smaller))
    return networks
