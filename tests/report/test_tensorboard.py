import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from amc.errors import StorageError
from amc.report.plots import LayerRow
from amc.report.tensorboard import RESULT, EventWriter, StrategyStrip

ROWS = [
    LayerRow("conv1", 16, 16, 32, 32, 1.0, 1.0),
    LayerRow("conv2", 32, 8, 4, 8, 2.0, 0.5),
]


def strategy_pixels(rows: list[LayerRow]) -> np.ndarray:
    return StrategyStrip(len(rows)).pixels(rows)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def session_start(accumulator: EventAccumulator) -> plugin_data_pb2.SessionStartInfo:
    content = accumulator.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    return plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info


def test_scalars_come_back_as_they_were_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.episode(3, {"search/reward": 0.25, "search/latency_ms": 2.0})
        writer.episode(4, {"search/reward": 0.5})
    read = [(event.step, event.value) for event in events(tmp_path).Scalars("search/reward")]
    assert read == [(3, 0.25), (4, 0.5)]
    assert events(tmp_path).Scalars("search/latency_ms")[0].value == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scalars_that_are_not_finite_are_left_out(value: float, tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.episode(0, {"good": 1.0, "bad": value})
    assert events(tmp_path).Tags()["scalars"] == ["good"]


def test_image_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with EventWriter(tmp_path) as writer:
        writer.image("picture", 7, pixels)
    (event,) = events(tmp_path).Images("picture")
    assert event.step == 7
    read = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    np.testing.assert_array_equal(read, pixels)


def test_strategy_is_written_as_an_image(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.strategy_image(2, ROWS)
    (event,) = events(tmp_path).Images("strategy")
    assert (event.step, event.height, event.width) == (2, *strategy_pixels(ROWS).shape[:2])


def test_result_has_a_tag_of_its_own_before_that_of_what_was_tried(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.strategy_image(1, ROWS)
        writer.strategy_image(1, ROWS, RESULT)
    tags = events(tmp_path).Tags()["images"]
    assert sorted(tags) == ["result/strategy", "strategy"]


def test_text_comes_back(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.text("result/table", "| a |")
    (event,) = events(tmp_path).Tensors("result/table/text_summary")
    assert event.tensor_proto.string_val[0] == b"| a |"


def test_strategy_pixels_show_kept_channels_and_bits() -> None:
    before = strategy_pixels(ROWS)
    fewer = strategy_pixels([ROWS[0], LayerRow("conv2", 32, 2, 4, 8, 2.0, 0.5)])
    lower = strategy_pixels([ROWS[0], LayerRow("conv2", 32, 8, 2, 8, 2.0, 0.5)])
    changed_by_channels = (before != fewer).any(-1).any(1).nonzero()[0]
    changed_by_bits = (before != lower).any(-1).any(1).nonzero()[0]
    # Channels are the upper strip, bits the lower one.
    assert changed_by_channels.max() < changed_by_bits.min()


def test_strip_shows_a_strategy_as_if_it_were_the_first() -> None:
    fewer = [LayerRow("conv1", 16, 5, 8, 8, 1.0, 1.0), ROWS[1]]
    strip = StrategyStrip(2)
    strip.pixels(fewer)
    np.testing.assert_array_equal(strip.pixels(ROWS), strategy_pixels(ROWS))


def test_networks_of_different_depth_share_a_writer(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.strategy_image(0, ROWS)
        writer.strategy_image(1, ROWS * 20)
    narrow, wide = events(tmp_path).Images("strategy")
    assert narrow.width < wide.width


def test_strategy_of_many_layers_is_an_image_too() -> None:
    assert strategy_pixels(ROWS * 50).dtype == np.uint8


def test_run_is_one_row_of_the_hparams_tab_in_its_own_folder(tmp_path: Path) -> None:
    hparams = {"budget.fraction": 0.5, "seed": 3, "agent": "ddpg", "bits": True}
    with EventWriter(tmp_path) as writer:
        writer.begin_hparams(hparams, ["result/reward"])
        writer.episode(7, {"result/reward": 0.75})
        writer.end_hparams()
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    accumulator = events(tmp_path)
    stored = session_start(accumulator).hparams
    assert stored["budget.fraction"].number_value == 0.5
    assert stored["seed"].number_value == 3
    assert stored["agent"].string_value == "ddpg"
    assert stored["bits"].number_value == 1
    assert [event.value for event in accumulator.Scalars("result/reward")] == [0.75]
    assert accumulator.Tags()["scalars"] == ["result/reward"]
    assert set(accumulator.PluginTagToContent("hparams")) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }


def test_a_run_has_its_row_before_it_ends(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.begin_hparams({"agent": "ddpg"}, ["result/reward"])
        writer.episode(1, {"result/reward": 0.5})
        writer.flush()
        accumulator = events(tmp_path)
        assert session_start(accumulator).hparams["agent"].string_value == "ddpg"
        assert accumulator.Scalars("result/reward")[-1].value == 0.5
        assert "_hparams_/session_end_info" not in accumulator.PluginTagToContent("hparams")


def test_a_strip_says_what_it_is_of() -> None:
    strip = StrategyStrip(2)
    named = strip.pixels(ROWS, "evaluation 3: the best so far")
    rows = (named != strip.pixels(ROWS)).any(-1).any(1).nonzero()[0]
    assert len(rows)
    assert rows.max() < 0.25 * len(named)  # above all else


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        EventWriter(tmp_path / "file" / "run")


def test_a_folder_that_tensorboard_cannot_name_is_said_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"its name is no UTF-8 text.*set PYTHONUTF8=1"):
        EventWriter(tmp_path / "d\udcff")
