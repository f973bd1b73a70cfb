"""One strategy repaired in ever more ways, for the benchmarks that compare them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from amc.problem.candidate import Compressor
from amc.problem.evaluate import Evaluator
from amc.recovery.settings import RecoverySettings
from amc.strategy import Strategy

FULL = RecoverySettings()
# What is printed -> settings; each has one part more than the one before it.
REPAIRS: dict[str, RecoverySettings] = {
    "none": replace(FULL, least_squares=False, batch_norm=False),
    "BN recalibration": replace(FULL, least_squares=False),
    "least squares": replace(FULL, sequential=False, batch_norm=False),
    "least squares, BN": replace(FULL, sequential=False),
    "layer by layer": replace(FULL, stream_correction=False, rectified=False),
    "layer by layer, stream": replace(FULL, rectified=False),
    "layer by layer, stream, rectified": FULL,
}
QUICK = "the same, quickly"


@dataclass(frozen=True)
class Repaired:
    """A strategy's network after one of the repairs.

    Attributes:
        repair: Its name.
        module: The network.
        note: What the repair says of itself.
        seconds: That it took, what it notes of the original once included.
    """

    repair: str
    module: nn.Module
    note: str
    seconds: float

    def row(self, evaluator: Evaluator) -> dict[str, object]:
        """What it does on the images of an evaluator."""
        found = evaluator(self.module)
        return {
            "repair": self.repair,
            "test %": f"{100 * found.scores['accuracy']:.2f}",
            "agreement": f"{found.agreement:.4f}",
            "repair s": f"{self.seconds:.1f}",
            "note": self.note,
        }


def repaired(compressor: Compressor, strategy: Strategy) -> Iterator[Repaired]:
    """In every way of `REPAIRS`, and as every candidate of a search is."""
    for name, settings in [*REPAIRS.items(), (QUICK, FULL)]:
        other = copy.copy(compressor)
        other.settings = settings
        for noted in ("_reference", "_quick_reference"):  # of other settings
            vars(other).pop(noted, None)
        start = time.perf_counter()
        made = other.apply(strategy) if name == QUICK else other.repair(strategy)
        yield Repaired(name, made.module, " ".join(made.notes), time.perf_counter() - start)
