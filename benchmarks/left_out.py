"""How well a policy orders the strategies of networks that it was not fitted to.

    python -m benchmarks.left_out
    python -m benchmarks.left_out --experience shipped outputs/train/<run> --fit steps=200

Nothing is evaluated. One network after the other is left out of what was remembered (of trainings:
their `experience.safetensors`; "shipped" is that of the policy that comes with amc), actors are
fitted to the others, and correct the estimated errors of its strategies. Columns, for the estimates
as they are and as corrected: the rank correlation with what strategies lost, that among the half of
them that lost least, and the regret of the first strategy, and of the best of the first three: what
it lost over the best of all, as a part of what the median lost over that. 0 is the best, 1 what the
median is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from agents.experience import load_experience
from agents.trust import SHIPPED, folder_of
from agents.trust_fit import FitSettings, Remembered, fitted
from benchmarks.provenance import print_table, provenance, write_csv
from envs.trust import REACH

FloatArray = npt.NDArray[np.float64]


def fit_of(texts: Sequence[str]) -> FitSettings:
    """Settings from ``name=number``."""
    whole = {field.name: field.type == "int" for field in dataclasses.fields(FitSettings)}
    given: dict[str, Any] = {}
    for text in texts:
        name, _, number = text.partition("=")
        given[name] = int(number) if whole[name] else float(number)
    return FitSettings(**given)


def scores_of(predicted: FloatArray, lost: FloatArray) -> dict[str, float]:
    """How well predictions order losses, shape (strategies,) each."""
    low = lost <= np.median(lost)
    order, least = np.argsort(predicted, kind="stable"), lost.min()
    spread = max(float(np.median(lost) - least), 1e-12)
    return {
        "rank": float(spearmanr(predicted, lost)[0]),
        "rank of best half": float(spearmanr(predicted[low], lost[low])[0]),
        "regret": float(lost[order[0]] - least) / spread,
        "regret of 3": float(lost[order[:3]].min() - least) / spread,
    }


def left_out(
    tasks: Sequence[Remembered], family: str, settings: FitSettings, seed: int
) -> list[dict[str, object]]:
    """A row for each task of a network, by actors that were fitted to the other networks."""
    policy = fitted([task for task in tasks if task.family != family], settings, seed)
    rows = []
    for task in tasks:
        if task.family == family and task.is_telling:
            telling = task.lost > 0
            parts, lost = task.parts[telling], task.lost[telling]
            factors = REACH ** policy.act(task.observations)
            before = scores_of(parts.sum((1, 2)), lost)
            after = scores_of((parts * factors).sum((1, 2)), lost)
            row: dict[str, object] = {"task": task.name, "strategies": len(lost)}
            for name, value in before.items():
                row |= {name: round(value, 3), f"{name}, corrected": round(after[name], 3)}
            rows.append(row | provenance(seed))
    return rows


def mean_row(rows: Sequence[dict[str, Any]], shown: Sequence[str]) -> dict[str, object]:
    """The mean over tasks and seeds."""
    means = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in shown[2:]}
    return {"task": "mean", "strategies": "", **means}


def main() -> None:
    """Leave out every network, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experience", nargs="+", default=[SHIPPED], help="of these trainings")
    parser.add_argument("--fit", nargs="*", default=[], help="name=value: as of amc train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    tasks = [task for source in options.experience for task in load_experience(folder_of(source))]
    settings, rows = fit_of(options.fit), []
    for seed in options.seeds:
        for family in sorted({task.family for task in tasks}):
            rows += left_out(tasks, family, settings, seed)
    shown = [name for name in rows[0] if name not in provenance(0)]
    print_table([*rows, mean_row(rows, shown)], shown)
    print(write_csv("left_out", rows))


if __name__ == "__main__":
    main()
