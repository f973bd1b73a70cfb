from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amc.compress.network import CompressedNetwork
from amc.errors import ArtifactError, StrategyError
from amc.graph.graph import NetworkGraph
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.strategy import Bits, Strategy
from amc.study.artifact import (
    RunRecord,
    read_compressed,
    read_strategy,
    rebuild_compressed,
    write_compressed,
    write_strategy,
    write_trials,
)
from tests.conftest import TINY_SHAPE

HALF = Strategy({"conv1": 0.5, "conv2": 0.5}, {"conv2": Bits(8, 8)})
RECORD = RunRecord(
    kind="search",
    network={"name": "tiny", "checkpoint": Path("a/b.pt")},
    data={"name": "digits", "mean": (0.5,)},
    device={},
    budget={"fraction": 0.5},
    settings={"seed": 0},
)


@pytest.fixture
def compressed(tiny_graph: NetworkGraph) -> CompressedNetwork:
    images = torch.randn(16, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
    return Compressor(tiny_graph, images, RecoverySettings(16, 16)).apply(HALF)


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_run_record_comes_back_as_plain_values(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    found = RunRecord.read(tmp_path)
    assert found.kind == "search"
    assert found.network == {"name": "tiny", "checkpoint": "a/b.pt"}
    assert found.data == {"name": "digits", "mean": [0.5]}
    assert found.settings == {"seed": 0}


def test_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"already holds a run\. Nothing was changed"):
        replace(RECORD, kind="apply").write(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "amc-policy"}, "is not of format 'amc-run'"),
        ({"version": 2}, "has version 2; this amc reads 1"),
        ({"kind": None}, "'kind' must be text"),
        ({"network": []}, "'network' must be an object"),
        ({"settings": None}, "'settings' must be an object"),
        ({"network": {}}, r"network\.name must be text, got None"),
        ({"data": {"name": 3}}, r"data\.name must be text, got 3\. Use the amc that wrote it, or"),
    ],
)
def test_run_record_of_another_kind_is_refused(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    RECORD.write(tmp_path)
    _change(tmp_path / "run.json", **values)
    with pytest.raises(ArtifactError, match=said):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "3", '"amc-run"'])
def test_what_is_no_run_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"run\.json is not"):
        RunRecord.read(tmp_path)


def test_missing_folder_and_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Run folder not found: .*none"):
        RunRecord.read(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"is not a complete run folder: run\.json not found"):
        RunRecord.read(tmp_path)


def test_a_folder_beside_the_run_is_said_to_be_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "search" / "first"
    (run / "finetune").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"first/run\.json is a file\. Give .*: .*first\.$"):
        RunRecord.read(run / "run.json")
    with pytest.raises(
        ArtifactError, match=r"not found\. The run is the folder above it: .*first\."
    ):
        RunRecord.read(run / "finetune")
    with pytest.raises(ArtifactError, match=r"Choose one of the runs in it, as .*search/first\."):
        RunRecord.read(tmp_path / "search")


def test_a_folder_written_from_python_is_said_to_be_python_s(tmp_path: Path) -> None:
    write_strategy(tmp_path, HALF)
    with pytest.raises(ArtifactError, match=r"written from Python.*amc\.finetune, and amc\.search"):
        RunRecord.read(tmp_path)


def test_strategy_comes_back_and_equal_strategies_give_equal_bytes(tmp_path: Path) -> None:
    write_strategy(tmp_path, HALF)
    first = (tmp_path / "strategy.json").read_bytes()
    assert read_strategy(tmp_path) == HALF
    write_strategy(tmp_path, Strategy({"conv2": 0.5, "conv1": 0.5}, {"conv2": Bits(8, 8)}))
    assert (tmp_path / "strategy.json").read_bytes() == first


def test_missing_strategy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Strategy not found"):
        read_strategy(tmp_path)


def test_compressed_network_is_rebuilt_with_the_same_outputs(
    compressed: CompressedNetwork, tiny_net: nn.Module, tmp_path: Path
) -> None:
    write_compressed(tmp_path, compressed)
    write_strategy(tmp_path, HALF)
    rebuilt = rebuild_compressed(tmp_path, tiny_net, TINY_SHAPE)
    images = torch.randn(4, *TINY_SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rebuilt.module.eval()(images), compressed.module.eval()(images))
    assert rebuilt.kept == compressed.kept
    assert {name: len(kept) for name, kept in rebuilt.kept.items()} == {"conv1": 2, "conv2": 3}


def test_compressed_network_of_another_strategy_is_refused(
    compressed: CompressedNetwork, tiny_net: nn.Module, tmp_path: Path
) -> None:
    write_compressed(tmp_path, compressed)
    write_strategy(tmp_path, Strategy({"conv1": 0.25}, {}))
    said = "network given is not the one that was compressed, or the two files are not of the same"
    with pytest.raises(StrategyError, match=said):
        rebuild_compressed(tmp_path, tiny_net, TINY_SHAPE)


def test_network_whose_groups_are_wider_is_said_to_be_perhaps_another(
    compressed: CompressedNetwork, tiny_net: nn.Module, tmp_path: Path
) -> None:
    write_compressed(tmp_path, compressed)
    write_strategy(tmp_path, HALF)
    tiny_net.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)  # half of it are 4, not 2
    tiny_net.bn1 = nn.BatchNorm2d(8)
    tiny_net.conv2 = nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False)
    said = "has 2 channels of group 'conv1', its strategy keeps 4. Either the network given is not"
    with pytest.raises(StrategyError, match=said):
        rebuild_compressed(tmp_path, tiny_net, TINY_SHAPE)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([], "'kept' must be an object, each value a list, each a channel's number, got"),
        ({"conv1": 2}, "each a channel's number, got .*conv1"),
        ({"conv1": [0.5]}, "each a channel's number, got .*conv1"),
        ({"conv1": [True]}, "each a channel's number, got .*conv1"),
    ],
)
def test_kept_channels_that_are_no_positions_are_refused(
    kept: Any, said: str, compressed: CompressedNetwork, tmp_path: Path
) -> None:
    write_compressed(tmp_path, compressed)
    _change(tmp_path / "compressed.json", kept=kept)
    with pytest.raises(ArtifactError, match=said):
        read_compressed(tmp_path)


def test_damaged_weights_are_refused(compressed: CompressedNetwork, tmp_path: Path) -> None:
    write_compressed(tmp_path, compressed)
    (tmp_path / "compressed.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="Compressed weights is not a readable safetensors"):
        read_compressed(tmp_path)


def test_trials_have_a_column_for_everything_that_any_of_them_has(tmp_path: Path) -> None:
    write_trials(tmp_path, [{"evaluation": 1, "reward": 0.5}, {"evaluation": 2, "noise": 0.1}])
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["evaluation", "reward", "noise"],
            ["1", "0.5", ""],
            ["2", "", "0.1"],
        ]
