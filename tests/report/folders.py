"""Folders of runs as amc leaves them, made without a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from amc.objectives import DEFAULT
from amc.report.plots import LayerRow
from amc.report.record import ResultRecord
from amc.report.tables import ComparisonRow, to_csv
from amc.strategy import Bits, Strategy
from amc.study import artifact
from amc.study.artifact import RunRecord
from amc.utils.files import write_text

ORIGINAL = ComparisonRow(
    "original",
    test={"accuracy": 0.90, "agreement": 0.0},
    search={"accuracy": 0.91, "agreement": 0.0},
    predicted_ms=4.0,
    measured_ms=5.0,
    measured_spread_ms=0.1,
    macs=1000,
    params=200,
    size_bytes=800,
)
FOUND = ComparisonRow(
    "best found",
    test={"accuracy": 0.88, "agreement": -0.1},
    search={"accuracy": 0.89, "agreement": -0.2},
    predicted_ms=1.0,
    measured_ms=2.0,
    measured_spread_ms=0.2,
    macs=500,
    params=100,
    size_bytes=200,
)
UNIFORM = replace(FOUND, name="uniform", test={"accuracy": 0.85, "agreement": -0.3})
LAYERS = [
    LayerRow("conv1", 16, 8, 8, 8, 3.0, 1.0),
    LayerRow("conv2", 32, 32, 32, 32, 0.75, 0.5),
]
STRATEGY = Strategy({"conv1": 0.5, "conv2": 1.0}, {"conv1": Bits(8, 8), "conv2": Bits(32, 32)})
RESULT = ResultRecord(
    title="Net: latency_ms at most 0.5 of the original",
    about={"network": "Net", "data": "digits", "device": "board"},
    reward="agreement",
    levels={"original": 0.0, "uniform": -0.3},
    scores=list(DEFAULT.scores),
    primary="accuracy",
    original=ORIGINAL.test,
    notes=["Measured on the device, batch 1.", "Two <layers> & more."],
    versions={"amc": "0.1.0", "torch": "2.6"},
    metric="latency_ms",
    unit="ms",
    layers=LAYERS,
    elsewhere=(0.25, 0.5),
    warmup=1,
)
_SETTINGS = {"seed": 0, "reward": "agreement", "agent": {"name": "ddpg", "actor_lr": 0.1}}


def record(kind: str = "search", **settings: Any) -> RunRecord:
    """How a run was made."""
    known = {**_SETTINGS, "search": {"evaluations": 3}, **settings}
    return RunRecord(
        kind=kind,
        network={"name": "resnet20"},
        data={"name": "digits"},
        device={"name": "board"},
        budget={"metric": "latency_ms", "fraction": 0.5, "absolute": None},
        settings=known,
    )


def make_run(
    folder: Path,
    *,
    found: ComparisonRow | None = FOUND,
    overrides: Sequence[str] = (),
    result: ResultRecord | None = RESULT,
    error: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of a search; without ``found`` of one that did not come to its end."""
    folder.mkdir(parents=True)
    record(**(settings or {})).write(folder)
    if overrides:
        write_text(folder / ".hydra" / "overrides.yaml", yaml.safe_dump(list(overrides)))
    log = "[2026-01-02 03:04:05,678][amc][INFO] - a line\n"
    if error:
        log += f"[2026-01-02 03:04:06,789][amc.run_log][ERROR] - {error}\n"
    write_text(folder / "search.log", log)
    if found is not None:
        write_text(folder / "comparison.csv", to_csv([ORIGINAL, UNIFORM, found], DEFAULT.scores))
        write_text(folder / "comparison.md", "| table |\n\n- A note.\n")
        write_trials(folder, [-0.5, -0.2, -0.3])
        artifact.write_strategy(folder, STRATEGY)
        if result is not None:
            result.write(folder)
    return folder


def write_trials(folder: Path, rewards: Sequence[float]) -> None:
    """Evaluations with these rewards."""
    best = [max(rewards[: place + 1]) for place in range(len(rewards))]
    rows = [
        {"evaluation": index, "reward": reward, "best_reward": so_far}
        for index, (reward, so_far) in enumerate(zip(rewards, best, strict=True), 1)
    ]
    artifact.write_trials(folder, rows)
