"""What the public functions say of arguments of the wrong kind, before they do anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import amc
from amc import api
from amc.errors import AmcError, ConfigError, DataError, DeviceError, NetworkError, PolicyError
from tests.conftest import TINY_CLASSES, TINY_SHAPE, TinyNet

MACS = {"metric": "macs", "fraction": 0.5}


@pytest.fixture(autouse=True)
def _nothing_is_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("amc.study.search.CompressionTask", None)
    monkeypatch.setattr(api, "graph_of", None)
    monkeypatch.setattr("amc.study.finetuning.train", None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data() -> amc.DataSet:
    images = torch.zeros(150, *TINY_SHAPE, dtype=torch.uint8)
    return amc.DataSet.from_tensors(images, torch.arange(150) % TINY_CLASSES)


def build() -> nn.Module:
    return TinyNet()


Call = Callable[[Any, Any], object]
CALLS: dict[str, Call] = {
    "search": lambda network, data: amc.search(network, data, None, MACS, folder="run"),
    "apply_policy": lambda network, data: amc.apply_policy(
        object.__new__(amc.Policy), network, data, None, MACS, folder="run"
    ),
    "compare": lambda network, data: amc.compare(network, data, None, MACS, folder="run"),
    "finetune": lambda network, data: amc.finetune(
        network, network, data, settings=amc.TrainingSettings(epochs=1), folder="run"
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("mynet:build", "a torch.nn.Module, got 'mynet:build'. amc.build_network"),
        (build, r"got the function build. Call it first: build\(\.\.\.\)"),
        (TinyNet, r"got the class TinyNet. Call it first: TinyNet\(\.\.\.\)"),
        ({}, "got an object of type dict. Give the trained module itself, not its weights"),
    ],
)
def test_what_is_no_network_is_named(
    call: Call, network: Any, said: str, data: amc.DataSet, tmp_path: Path
) -> None:
    with pytest.raises(NetworkError, match=said):
        call(network, data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_data_set_is_named(call: Call, data: amc.DataSet, tmp_path: Path) -> None:
    images = torch.zeros(1, *TINY_SHAPE)
    with pytest.raises(DataError, match=r"an amc.DataSet, got an object of type tuple.*from_tens"):
        call(build(), (images, images))
    with pytest.raises(NetworkError, match="The network comes first, then the data"):
        call(data, build())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"space": {"weight_bits": (32,)}},
            ConfigError,
            r"space must be an amc.SearchSpace, got .* dict. Write amc.SearchSpace\(\.\.\.\)",
        ),
        ({"recovery": {}}, ConfigError, "recovery must be an amc.RecoverySettings"),
        ({"evaluations": 2.5}, ConfigError, r"evaluations must be a whole number, got 2\.5"),
        ({"evaluations": 0}, ConfigError, "at least 1 evaluation, got evaluations=0"),
        ({"seed": "a"}, ConfigError, "seed must be a whole number, got 'a'"),
        ({"seed": True}, ConfigError, "seed must be a whole number, got True"),
        ({"folder": 3}, ConfigError, "folder must be a path, as text or pathlib.Path, or None"),
        ({"search_images": "all"}, ConfigError, "images must be a whole number, got 'all'"),
        ({"search_images": 0}, ConfigError, "images must be at least 1, got 0"),
        ({"bfloat16": "auto"}, ConfigError, "bfloat16 must be true, false or null, got 'auto'"),
        ({"final_candidates": None}, ConfigError, "final_candidates must be a whole number, got N"),
        ({"checkpoint_every": 1.5}, ConfigError, "checkpoint_every must be a whole number"),
        ({"agent": 3}, ConfigError, "agent must be a name, a mapping of its name and settings"),
        ({"agent": {"hidden": [3]}}, ConfigError, "agent must be a name, a mapping"),
        ({"device": 3}, DeviceError, "device must be a name, options, .* got 3. amc ships .*torch"),
    ],
)
def test_search_names_the_argument_of_the_wrong_kind(
    options: dict[str, Any], error: type[AmcError], said: str, data: amc.DataSet, tmp_path: Path
) -> None:
    given = {"device": None, "budget": MACS, "folder": "run"} | options
    with pytest.raises(error, match=said):
        amc.search(build(), data, **given)
    assert list(tmp_path.iterdir()) == []


def test_compare_names_the_argument_of_the_wrong_kind(data: amc.DataSet) -> None:
    for option, value in (("folder", 3), ("evaluations", 2.5), ("final_candidates", "a")):
        with pytest.raises(ConfigError, match=f"{option} must be a"):
            amc.compare(build(), data, None, MACS, **{option: value})
    with pytest.raises(ConfigError, match=r"space must be an amc\.SearchSpace"):
        amc.compare(build(), data, None, MACS, space={}, store=False)


def test_a_policy_is_loaded_first(data: amc.DataSet) -> None:
    with pytest.raises(PolicyError, match=r"of one, got 7\. amc\.load_policy\(run_folder\) reads"):
        amc.apply_policy(7, build(), data)  # type: ignore[arg-type]


def test_settings_of_finetuning_are_its_own_class(data: amc.DataSet) -> None:
    with pytest.raises(ConfigError, match=r"settings must be an amc\.TrainingSettings, got .*dict"):
        amc.finetune(build(), build(), data, settings={"epochs": 3})
    settings = amc.TrainingSettings(epochs=1)
    with pytest.raises(NetworkError, match=r"original must be a torch\.nn\.Module"):
        amc.finetune(build(), data, build(), settings=settings)


def test_profile_and_load_compressed_name_network_and_shape() -> None:
    for call in (
        lambda *given: amc.profile(*given, "torch_cpu"),
        lambda *given: amc.load_compressed("run", *given),
    ):
        with pytest.raises(NetworkError, match="got the function build"):
            call(build, TINY_SHAPE)
        for shape in (32, (32, 32), (3, 8.0, 8), (0, 8, 8)):
            with pytest.raises(ConfigError, match=r"must be \(channels, height, width\)"):
                call(build(), shape)
    with pytest.raises(ConfigError, match=r"folder must be a path, .*pathlib\.Path, got None"):
        amc.load_compressed(None, build(), TINY_SHAPE)
    with pytest.raises(ConfigError, match=r"space must be an amc\.SearchSpace"):
        amc.profile(build(), TINY_SHAPE, "torch_cpu", space={})


def test_arrays_are_said_to_become_tensors() -> None:
    images, labels = np.zeros((20, *TINY_SHAPE), np.uint8), np.zeros(20, np.int64)
    with pytest.raises(DataError, match=r"training images must be .*ndarray.*torch\.as_tensor"):
        amc.DataSet.from_tensors(images, labels)
    with pytest.raises(DataError, match=r"training labels must be a torch\.Tensor, got ndarray"):
        amc.DataSet.from_tensors(torch.from_numpy(images), labels)
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    with pytest.raises(DataError, match="test images must be"):
        amc.DataSet.from_tensors(*tensors, test_images=images, test_labels=labels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_bits": 32}, r"list of widths among .*, got 32. One width is written \(32,\)"),
        ({"activation_bits": "8"}, r"activation_bits must be a list of widths among .*, got '8'\."),
        ({"weight_bits": ()}, "weight_bits must be a list of widths"),
        ({"channel_step": 2.5}, r"channel_step must be a whole number, got 2\.5"),
        ({"channel_step": 0}, "channel_step must be at least 1, got 0"),
        ({"min_preserve_ratio": "0.2"}, r"min_preserve_ratio must be a number in \(0, 1\], got '0"),
    ],
)
def test_search_space_names_the_field_of_the_wrong_kind(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        amc.SearchSpace(**options)
