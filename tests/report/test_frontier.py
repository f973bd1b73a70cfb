from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from amc.errors import ConfigError
from amc.report.frontier import (
    by_layers,
    frontier_figure,
    pixels_of,
    plot_frontier,
    plot_strategies,
)
from amc.report.runs import Overview, Run, State
from tests.report.folders import RESULT, STRATEGY
from tests.report.test_runs import at, run

OVERVIEW = Overview("a $ sweep", [at("0", 2.0, 0.88, seed="$0"), at("1", 4.0, 0.8, seed="$1")])


def test_the_frontier_shows_every_run_the_best_ones_and_the_original(tmp_path: Path) -> None:
    plot_frontier(OVERVIEW, "measured_ms", tmp_path / "pareto.png")
    assert Image.open(tmp_path / "pareto.png").size == (1170, 650)
    axes = frontier_figure(OVERVIEW, "measured_ms").axes[0]
    assert axes.get_xlabel() == "measured latency (ms)"
    step, *dots = axes.lines
    assert list(step.get_xdata()) == [2.0]  # the other is slower and worse
    assert [float(dot.get_ydata()[0]) for dot in dots] == pytest.approx([88, 80, 90])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["best at its cost", "1: seed=$0", "2: seed=$1", "original"]


def test_each_device_has_a_front_of_its_own() -> None:
    runs = [at("0", 2.0, 0.88, device="a"), at("1", 4.0, 0.8, device="b")]
    axes = frontier_figure(Overview("s", runs), "measured_ms").axes[0]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[2.0], [4.0]]
    assert {line.get_linestyle() for line in axes.lines[:2]} == {"-", "--"}
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:2] == ["best of a", "best of b"]


def test_a_picture_is_pixels_too() -> None:
    assert pixels_of(frontier_figure(OVERVIEW, "macs")).shape == (650, 1170, 3)


def test_without_numbers_there_is_no_frontier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="against energy_mj needs a run that has it"):
        plot_frontier(OVERVIEW, "energy_mj", tmp_path / "p.png")


def test_strategies_stand_together_where_they_are_of_the_same_layers(tmp_path: Path) -> None:
    other = replace(
        run("2"),
        record=replace(RESULT, layers=()),
        strategy=replace(STRATEGY, preserve_ratio={"fc": 0.25}),
    )
    overview = replace(OVERVIEW, runs=[*OVERVIEW.runs, Run(Path("x"), State.FAILED), other])
    assert by_layers(overview) == [(("conv1", "conv2"), [0, 1]), (("fc",), [3])]
    plot_strategies(overview, tmp_path / "strategies.png")
    assert Image.open(tmp_path / "strategies.png").width == 1170


def test_without_strategies_there_is_no_heat_map(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a run that has one"):
        plot_strategies(Overview("s", [Run(Path("x"), State.FAILED)]), tmp_path / "s.png")
