"""Networks of timm by name, and published weights of timm's and torchvision's."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from amc.cli import recipe
from amc.errors import ConfigError, NetworkError
from amc.networks import build_network, check_network
from amc.networks.build import check_network_name, images_of

RGB32 = (3, 32, 32)
HALVES = {"image_size": 176, "mean": [0.5, 0.4, 0.6], "std": [0.2, 0.2, 0.5]}


class Stand(ModuleType):
    """As much of timm as amc asks for: two networks, one of them with weights."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.made: dict[str, Any] = {}
        self.fault: Exception | None = None

    def list_models(self) -> list[str]:
        return ["resnet10t", "resnet14t"]

    def list_pretrained(self, pattern: str) -> list[str]:
        return ["resnet10t.c3_in1k"] if pattern == "resnet10t.*" else []

    def get_pretrained_cfg(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            input_size=(3, 176, 176),
            mean=(0.5, 0.4, 0.6),
            std=(0.2, 0.2, 0.5),
            num_classes=1000,
            fixed_input_size=name == "resnet14t",
        )

    def create_model(self, name: str, pretrained: bool, **given: Any) -> nn.Module:
        self.made = {"name": name, "pretrained": pretrained, **given}
        if self.fault is not None:
            raise self.fault
        return nn.Linear(1, 1)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand()
    monkeypatch.setitem(sys.modules, "timm", stand)
    return stand


def made(timm: Stand, name: str = "timm/resnet10t", **given: Any) -> dict[str, Any]:
    build_network(name, **{"num_classes": None, "image_shape": RGB32, **given})
    return timm.made


def test_channels_and_outputs_are_those_of_data_and_weights_are_not_asked_for(timm: Stand) -> None:
    assert made(timm, num_classes=7, image_shape=(1, 32, 32), drop_rate=0.1) == {
        **{"name": "resnet10t", "pretrained": False},
        **{"in_chans": 1, "num_classes": 7, "drop_rate": 0.1},
    }


def test_outputs_that_nobody_asks_for_are_those_of_the_weights(timm: Stand) -> None:
    assert made(timm, "timm/resnet10t.c3_in1k", pretrained=True) == {
        **{"name": "resnet10t.c3_in1k", "pretrained": True, "in_chans": 3},
    }
    assert made(timm, num_classes=0, pretrained=True)["num_classes"] == 0


def test_network_for_one_size_of_images_is_built_for_theirs(timm: Stand) -> None:
    assert made(timm, "timm/resnet14t")["img_size"] == (32, 32)
    assert "img_size" not in made(timm, "timm/resnet14t", image_shape=(3, 176, 176))


def test_network_that_cannot_be_built_for_their_size_says_its_own(timm: Stand) -> None:
    timm.fault = TypeError("got an unexpected keyword argument 'img_size'")
    said = r"'timm/resnet14t' takes images of 3x176x176 alone: data\.image_size=176"
    with pytest.raises(NetworkError, match=said):
        made(timm, "timm/resnet14t")


def test_untrained_classifier_on_trained_weights_is_refused(timm: Stand) -> None:
    said = r"classifier with 1000 outputs; with num_classes=3 .*network\.checkpoint=<file>"
    with pytest.raises(NetworkError, match=said):
        made(timm, num_classes=3, pretrained=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet10x", "no network 'timm/resnet10x'. Did you mean timm/resnet10t"),
        ("timm/resnet10t.c4", r"Did you mean timm/resnet10t\.c3_in1k\?.*list_pretrained"),
        ("timm/", r"no network 'timm/'\. timm\.list_models"),
    ],
)
def test_unknown_name_of_timms_lists_near_matches(timm: Stand, name: str, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        check_network_name(name)


def test_weights_that_there_are_none_of_are_refused(timm: Stand) -> None:
    with pytest.raises(NetworkError, match="timm has no weights of 'timm/resnet14t'"):
        check_network_name("timm/resnet14t", pretrained=True)
    for name in ("resnet20", "tests.cli.nets:tiny"):
        said = f"no published weights of network '{name}'"
        with pytest.raises(NetworkError, match=said):
            check_network_name(name, pretrained=True)


def test_weights_that_cannot_be_fetched_say_so_and_that_a_file_will_do(timm: Stand) -> None:
    timm.fault = ConnectionError("no route to host")
    said = r"weights of 'timm/resnet10t' cannot be fetched: ConnectionError: no route.*checkpoint="
    with pytest.raises(NetworkError, match=said):
        made(timm, pretrained=True)


def test_mistaken_option_of_timms_network_is_named(timm: Stand) -> None:
    timm.fault = ValueError("bad drop_rate")
    with pytest.raises(NetworkError, match=r"ValueError: bad drop_rate\. Check network\.options"):
        made(timm, drop_rate=-1, pretrained=True)


def test_timm_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"needs timm.*pip install 'amc-compress\[timm\]'"):
        build_network("timm/resnet10t", num_classes=2, image_shape=RGB32)


# -- what data they are given --------------------------------------------------------------------


def test_images_are_those_of_the_weights_where_nothing_else_is_said(timm: Stand) -> None:
    assert images_of("timm/resnet10t", pretrained=False) == HALVES
    network = {"name": "timm/resnet10t"}
    nothing = {"name": "image_folder", "image_size": None, "mean": None}
    assert recipe.data_for(network, nothing) == {"name": "image_folder", **HALVES}
    told = {"name": "image_folder", "image_size": 64, "mean": [0.1], "std": [0.3]}
    assert recipe.data_for(network, told) == told


def test_grey_images_have_one_number_for_their_channel(timm: Stand) -> None:
    grey = {"name": "image_folder", "channels": 1}
    found = recipe.data_for({"name": "timm/resnet10t"}, grey)
    assert (found["mean"], found["std"]) == ([0.5], pytest.approx([0.3]))


def test_data_of_a_size_of_their_own_keep_it_unless_weights_are_asked_for(timm: Stand) -> None:
    data = {"name": "cifar10", "image_size": None}
    assert recipe.data_for({"name": "timm/resnet10t"}, data) == data
    asked = {"name": "timm/resnet10t", "pretrained": True}
    assert recipe.data_for(asked, data)["image_size"] == 176


def test_other_networks_say_nothing_of_data() -> None:
    data = {"name": "image_folder", "image_size": None}
    for name in ("resnet20", "mobilenet_v2", "tests.cli.nets:tiny"):
        assert recipe.data_for({"name": name}, data) == data


def test_torchvisions_weights_bring_their_images() -> None:
    assert images_of("inception_v3", pretrained=True) == {
        **{"image_size": 299, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }


def test_weights_from_a_file_and_published_ones_contradict_each_other(timm: Stand) -> None:
    options = {"name": "timm/resnet10t", "pretrained": True, "checkpoint": "weights.pt"}
    with pytest.raises(ConfigError, match=r"network\.pretrained=true or network\.checkpoint"):
        recipe.check_network(options, {"name": "image_folder"})
    recipe.check_network({**options, "checkpoint": None}, {"name": "image_folder"})


# -- torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet1_1", "inception_v3"])
def test_torchvisions_weights_are_loaded_as_published(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models
    from torchvision.models._api import WeightsEnum

    usual = {"init_weights": False} if name == "inception_v3" else {}
    state = models.get_model(name, weights=None, **usual).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    network = build_network(name, num_classes=None, image_shape=RGB32, pretrained=True)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    network.train()  # no auxiliary classifier beside its scores
    assert isinstance(network(torch.rand(2, 3, 80, 80)), torch.Tensor)


def test_torchvisions_weights_that_cannot_be_fetched_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.models._api import WeightsEnum

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
    said = "weights of 'squeezenet1_1' cannot be fetched: ConnectionError: no route"
    with pytest.raises(NetworkError, match=said):
        build_network("squeezenet1_1", num_classes=None, image_shape=RGB32, pretrained=True)


# -- timm itself ---------------------------------------------------------------------------------


def test_real_network_of_timms_is_given_the_weights_that_the_hub_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = pytest.importorskip("timm")
    state = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr(
        "timm.models._builder._resolve_pretrained_source", lambda _: ("state_dict", state)
    )
    shape = (1, 32, 32)  # grey: the first convolution's weights are summed over colours
    network = build_network("timm/resnet10t", num_classes=None, image_shape=shape, pretrained=True)
    assert check_network(network, shape).shape[1] == 1000
    loaded = network.state_dict()
    assert torch.equal(loaded["fc.weight"], state["fc.weight"])
    grey = state["conv1.0.weight"].sum(1, keepdim=True)
    assert torch.allclose(loaded["conv1.0.weight"], grey, atol=1e-6)


def test_real_transformer_of_timms_is_built_for_small_images() -> None:
    pytest.importorskip("timm")
    network = build_network("timm/vit_tiny_patch16_224", num_classes=4, image_shape=RGB32, depth=1)
    assert check_network(network, RGB32).shape == (2, 4)
    near = "Did you mean timm/.*resnet10t"
    with pytest.raises(NetworkError, match=near):
        build_network("timm/resnet10", num_classes=4, image_shape=RGB32)
