from __future__ import annotations

import csv
import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from amc.errors import ConfigError, StorageError
from amc.report.curves import COLOURS, _band, _range, curves_csv, plot_curves

UP = [0.1, 0.5, 0.7, 0.8]
LOW = [0.1, 0.3, 0.3, 0.4]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def rows_of(colour: str, path: Path) -> np.ndarray:
    """Numbers of the rows of pixels, from the top, that have the colour, left of the legend."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    image = pixels(path)
    return np.flatnonzero((image[:, : image.shape[1] * 3 // 4] == wanted).all(-1).any(1))


def test_line_is_the_mean_over_seeds_and_the_band_one_standard_deviation() -> None:
    band = _band([[1.0, 3.0], [3.0, 7.0]], 2)
    assert band.mean.tolist() == [2.0, 5.0]
    assert band.low.tolist() == [1.0, 3.0]
    assert band.high.tolist() == [3.0, 7.0]
    assert band.final == 5.0


def test_a_search_that_ended_earlier_keeps_its_last_value() -> None:
    assert _band([[0.2, 0.4]], 4).mean.tolist() == [0.2, 0.4, 0.4, 0.4]


def test_mean_begins_where_every_seed_has_a_strategy_within_the_budget() -> None:
    mean = _band([[None, 0.4], [0.2, 0.4]], 2).mean
    assert np.isnan(mean[0])
    assert mean[1] == pytest.approx(0.4)


def test_a_start_from_far_below_is_cut_off() -> None:
    late = _band([[-9.0, *[0.5] * 18, 0.6]], 20)
    steady = _band([[0.4] * 20], 20)
    assert _range([late, steady]) == (0.4, 0.6)


def test_better_agents_are_drawn_higher_in_colours_of_their_own(tmp_path: Path) -> None:
    plot_curves({"a": [UP], "b": [LOW]}, tmp_path / "a.png")
    assert (
        rows_of(COLOURS[0], tmp_path / "a.png").min()
        < rows_of(COLOURS[1], tmp_path / "a.png").min()
    )


def test_a_dozen_agents_have_a_dozen_colours() -> None:
    assert len(set(COLOURS)) == 12


def test_level_far_above_does_not_press_the_curves_to_the_floor(tmp_path: Path) -> None:
    plot_curves({"a": [UP]}, tmp_path / "alone.png")
    plot_curves({"a": [UP]}, tmp_path / "far.png", levels={"original": 9.0})
    plot_curves({"a": [UP]}, tmp_path / "near.png", levels={"original": 1.0})
    alone, far, near = (
        np.ptp(rows_of(COLOURS[0], tmp_path / f"{name}.png")) for name in ("alone", "far", "near")
    )
    assert far == pytest.approx(alone, abs=3)
    assert near < 0.9 * alone


def test_same_curves_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plot_curves({"b": [UP, LOW], "a": [[0.3]]}, tmp_path / name, levels={"uniform": 0.3})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [[]]}])
def test_no_curves_are_refused(curves: dict[str, list[list[float]]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one curve, got none"):
        plot_curves(curves, tmp_path / "a.png")


def test_picture_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        plot_curves({"a": [UP]}, tmp_path / "file" / "a.png")


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_curves({"a": [UP]}, tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_csv_has_a_line_per_evaluation_and_leaves_what_is_not_there_empty() -> None:
    text = curves_csv({("ddpg", 0): [None, 0.5], ("uniform", 3): [0.25]})
    rows = [list(row.values()) for row in csv.DictReader(io.StringIO(text))]
    assert rows == [
        ["ddpg", "0", "1", ""],
        ["ddpg", "0", "2", "0.5"],
        ["uniform", "3", "1", "0.25"],
    ]
    assert text.splitlines()[0] == "agent,seed,evaluation,best_so_far"
