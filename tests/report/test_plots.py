import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from amc.errors import ConfigError, StorageError
from amc.report import plots
from amc.report.plots import (
    AFTER,
    LayerRow,
    plot_learning_curve,
    plot_strategies_side_by_side,
    plot_strategy,
    shown_from,
)

FLOAT_ROW = LayerRow("conv", 16, 8, 32, 32, 1.0, 0.5)


def rows(count: int, bits: int = 32) -> list[LayerRow]:
    return [replace(FLOAT_ROW, name=f"layer{i}", weight_bits=bits) for i in range(count)]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def count_of(colour: str, path: Path) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels(path) == wanted).all(-1).sum())


def test_strategy_picture_fits_a_readme(tmp_path: Path) -> None:
    plot_strategy(rows(4, bits=8), tmp_path / "a.png", "title")
    height, width, _ = pixels(tmp_path / "a.png").shape
    assert width == 9 * 130
    assert 500 < height < 900


def test_panel_of_bits_is_left_out_when_all_layers_are_float(tmp_path: Path) -> None:
    plot_strategy(rows(4), tmp_path / "float.png", "title")
    plot_strategy(rows(4, bits=8), tmp_path / "bits.png", "title")
    assert len(pixels(tmp_path / "float.png")) < len(pixels(tmp_path / "bits.png"))


def test_bars_shrink_with_the_channels_that_are_kept(tmp_path: Path) -> None:
    half = [replace(FLOAT_ROW, cost_after=0.0)]
    quarter = [replace(half[0], channels_after=4)]
    plot_strategy(half, tmp_path / "half.png", "t")
    plot_strategy(quarter, tmp_path / "quarter.png", "t")
    # The legends' samples are of the same colour, which makes the ratio a little more than 1/2.
    ratio = count_of(AFTER, tmp_path / "quarter.png") / count_of(AFTER, tmp_path / "half.png")
    assert ratio == pytest.approx(0.5, abs=0.05)


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plot_strategy(rows(3, bits=4), tmp_path / name, "title", cost_label="energy_mj")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_hundred_long_layer_names_are_thinned_to_a_picture_of_the_same_width(
    tmp_path: Path,
) -> None:
    many = [replace(FLOAT_ROW, name=f"features.stage.block{i}.convolution") for i in range(110)]
    plot_strategy(many, tmp_path / "many.png", "title")
    height, width, _ = pixels(tmp_path / "many.png").shape
    assert width == 9 * 130
    assert height < 900


def test_strategies_side_by_side_make_a_wider_picture(tmp_path: Path) -> None:
    plot_strategies_side_by_side([("phone", rows(3)), ("GPU", rows(3))], tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape[1] > 9 * 130


def test_strategies_of_different_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the layers of 'GPU' are not those of 'phone'"):
        plot_strategies_side_by_side([("phone", rows(3)), ("GPU", rows(4))], tmp_path / "a.png")


def test_strategy_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one layer"):
        plot_strategy([], tmp_path / "a.png", "title")
    with pytest.raises(ConfigError, match="at least one layer"):
        plot_strategies_side_by_side([], tmp_path / "a.png")


def test_learning_curve_shades_the_warm_up(tmp_path: Path) -> None:
    rewards = [0.1, float("nan"), 0.5, 0.4]
    references = {"uniform": 0.3, "original": 0.9}
    plot_learning_curve(rewards, tmp_path / "a.png", references=references, warmup=2)
    plot_learning_curve(rewards, tmp_path / "b.png", references=references)
    assert count_of("#eeeeee", tmp_path / "a.png") > 10_000
    assert count_of("#eeeeee", tmp_path / "b.png") < 1_000


@pytest.mark.parametrize(
    ("rewards", "always", "expected"),
    [
        ([-4.0, -3, -2, -1], [-1.0], -4),  # none is far below the others
        ([-90.0, -5, -4, -3, -2, -1], [-1.0], -4.75 - 3 * 2.5),  # quartiles -4.75 and -2.25
        ([-90.0, -5, -4, -3, -2, -1], [-40.0], -40),
        ([-2.0], [-2.0], -2),
        ([-9.0, -1, -1, -1, -1], [-1.0], -1),
        ([math.nan, -3.0, -1, -2], [math.nan, -1], -3),
    ],
)
def test_rewards_far_below_the_others_are_not_what_a_picture_is_scaled_to(
    rewards: list[float], always: list[float], expected: float
) -> None:
    assert shown_from(rewards, always) == pytest.approx(expected)


def test_learning_curve_says_how_many_evaluations_lie_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("amc.report.plots._write", lambda figure, _: drawn.append(figure))
    rewards = [-0.3, -90, -0.2, -0.25, -0.22, -50, -0.2, -0.21, -0.19]
    plot_learning_curve(rewards, tmp_path / "a.png", references={"uniform": -0.4})
    plot_learning_curve(rewards[2:5], tmp_path / "b.png", references={"uniform": -0.4})
    labels = [figure.axes[0].get_legend_handles_labels()[1] for figure in drawn]
    assert "worse than shown (2)" in labels[0]
    assert not any("worse" in label for label in labels[1])
    low, high = drawn[0].axes[0].get_ylim()
    assert -1 < low < -0.4 < -0.19 < high


def test_learning_curve_without_rewards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one reward"):
        plot_learning_curve([], tmp_path / "a.png")


def test_picture_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        plot_learning_curve([0.5], tmp_path / "file" / "a.png")


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_learning_curve([0.5], tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "0.5"), (20.3835, "20.38"), (9999, "9999"), (62741906, "62.74 M"), (4.5e4, "45 k")],
)
def test_large_costs_are_written_with_a_prefix(value, said):
    assert plots._readable(value) == said
