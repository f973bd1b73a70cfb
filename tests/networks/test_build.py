import sys
from pathlib import Path

import pytest
import torch
import torch.fx
from omegaconf import OmegaConf
from torch import nn

from amc.errors import NetworkError
from amc.layers.kind import is_leaf
from amc.networks import NETWORKS, build_network, check_network

RGB32 = (3, 32, 32)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def resnet_parameters(depth: int) -> int:
    """Convolutions, two numbers of BN per channel, and the linear layer, by arithmetic."""
    n = (depth - 2) // 6
    total = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for c_in, c_out in ((16, 16), (16, 32), (32, 64)):
        total += (c_in + c_out) * c_out * 9 + 2 * (2 * c_out)
        total += (n - 1) * 2 * (c_out * c_out * 9 + 2 * c_out)
    return total


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_resnets_have_the_parameters_of_the_paper(depth):
    network = build_network(f"resnet{depth}", num_classes=10, image_shape=RGB32)
    assert count_parameters(network) == resnet_parameters(depth)
    # He et al. 2016, table 6
    assert round(resnet_parameters(20) / 1e6, 2) == 0.27
    assert round(resnet_parameters(56) / 1e6, 2) == 0.85


def test_resnet_layers_are_named_as_in_the_published_checkpoints():
    network = build_network("resnet20", num_classes=10, image_shape=RGB32)
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    parts = [f"{block}.{part}" for block in blocks for part in ("conv1", "bn1", "conv2", "bn2")]
    modules = {key.rpartition(".")[0] for key in network.state_dict()}
    assert modules == {"conv1", "bn1", "linear", *parts}


def test_shortcut_takes_every_second_pixel_and_pads_zero_channels_on_both_sides():
    block = build_network("resnet20", num_classes=10, image_shape=RGB32).layer2[0]
    nn.init.zeros_(block.bn2.weight)  # the block's own branch is silent
    x = torch.rand(1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    out = block.eval()(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, [0, 2]][..., [0, 2]])
    assert out[:, :8].abs().sum() == 0
    assert out[:, 24:].abs().sum() == 0


def test_lenets_have_the_parameters_of_the_literature():
    mnist = (1, 28, 28)
    fully_connected = build_network("lenet_300_100", num_classes=10, image_shape=mnist)
    assert count_parameters(fully_connected) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    convolutional = build_network("lenet_5", num_classes=10, image_shape=mnist)
    features = 50 * 4 * 4
    assert count_parameters(convolutional) == (
        (25 * 20 + 20) + (20 * 25 * 50 + 50) + (features * 500 + 500) + (500 * 10 + 10)
    )


def test_lenet_5_takes_the_input_channels_of_its_option():
    network = build_network("lenet_5", num_classes=10, image_shape=(1, 28, 28), input_channels=3)
    assert check_network(network, (3, 28, 28)).shape[1] == 10


def test_lenet_5_refuses_images_that_its_poolings_would_swallow():
    with pytest.raises(NetworkError, match=r"at least 16x16, got 8x8.*data\.image_size"):
        build_network("lenet_5", num_classes=10, image_shape=(1, 8, 8))


def test_mobilenet_has_the_4_2_million_parameters_of_the_paper():
    network = build_network("mobilenet_v1", num_classes=1000, image_shape=(3, 224, 224))
    assert count_parameters(network) == 4_231_976


def test_mobilenet_width_multiplies_channels():
    network = build_network("mobilenet_v1", num_classes=5, image_shape=RGB32, width=0.5)
    assert network.classifier.in_features == 512
    assert network.features[0][0].out_channels == 16


@pytest.mark.parametrize(("image_shape", "stride"), [(RGB32, 1), ((3, 224, 224), 2)])
def test_mobilenet_stem_keeps_the_resolution_of_small_images(image_shape, stride):
    network = build_network("mobilenet_v1", num_classes=5, image_shape=image_shape, width=0.25)
    assert network.features[0][0].stride == (stride, stride)
    with torch.no_grad():
        maps = network.eval().features(torch.zeros(1, *image_shape))
    side = image_shape[1] // (16 * stride)
    assert maps.shape == (1, 256, side, side)


class WholeLayers(torch.fx.Tracer):
    """Layers of all kinds are called whole, as amc traces them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("name", NETWORKS)
def test_own_networks_trace_and_fit_their_images(name):
    network = build_network(name, num_classes=7, image_shape=RGB32)
    assert check_network(network, RGB32).shape[1] == 7
    traced = torch.fx.GraphModule(network, WholeLayers().trace(network.eval()))
    for batch in (1, 3):
        images = torch.rand(batch, *RGB32)
        with torch.no_grad():
            assert torch.equal(traced(images), network(images))


def test_equal_seeds_build_equal_weights_and_leave_the_global_random_state():
    before = torch.random.get_rng_state()
    first, again, other = (
        build_network("resnet20", num_classes=10, image_shape=RGB32, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_torchvision_classifiers_build_by_name_and_return_one_tensor(name):
    network = build_network(name, num_classes=4, image_shape=(3, 64, 64))
    assert check_network(network, (3, 64, 64)).shape[1] == 4


def test_torchvision_models_of_other_tasks_are_unknown():
    with pytest.raises(NetworkError, match="Unknown network"):
        build_network("fcn_resnet50", num_classes=4, image_shape=RGB32)


def test_unknown_name_lists_near_matches_and_what_is_accepted():
    with pytest.raises(NetworkError, match=r"Did you mean resnet56.*torchvision.*module:function"):
        build_network("resnet_56", num_classes=10, image_shape=RGB32)


@pytest.mark.parametrize("name", ["resnet20", "squeezenet1_1"])
def test_unknown_option_names_the_network_and_the_option(name):
    with pytest.raises(NetworkError, match=rf"{name}.*wdith"):
        build_network(name, num_classes=10, image_shape=RGB32, wdith=2)


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module of the user's into the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"users_{tmp_path.name.replace('-', '_')}"
        Path(f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_users_function_gets_only_what_its_signature_accepts(write_module, caplog):
    module = write_module(
        "from torch import nn\n"
        "def build(num_classes, hidden=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), "
        "nn.Linear(hidden, num_classes))\n"
    )
    network = build_network(
        f"{module}:build", num_classes=5, image_shape=(3, 2, 2), hidden=4, width=2
    )
    assert (network[1].out_features, network[2].out_features) == (4, 5)
    assert "does not take the options ['width']" in caplog.text


def test_users_function_with_keywords_gets_everything(write_module):
    module = write_module(
        "from torch import nn\n"
        "def build(**given):\n"
        "    net = nn.Linear(1, 1)\n"
        "    net.given = given\n"
        "    return net\n"
    )
    network = build_network(f"{module}:build", num_classes=5, image_shape=(3, 2, 2), width=2)
    expected = {"num_classes": 5, "image_shape": (3, 2, 2), "seed": 0, "width": 2}
    assert network.given == expected


def test_users_module_that_is_missing_says_where_it_was_looked_for(write_module):
    with pytest.raises(
        NetworkError, match=r"cannot import module 'nowhere_to_be_found'.*importable"
    ):
        build_network("nowhere_to_be_found:build", num_classes=5, image_shape=RGB32)


@pytest.mark.parametrize("given", ["mynet.py:build", "nets/mynet.py:build"])
def test_users_module_named_as_a_file_is_said_to_be_written_without_its_ending(write_module, given):
    write_module("")
    with pytest.raises(NetworkError) as caught:
        build_network(given, num_classes=5, image_shape=RGB32)
    right = given.replace(".py", "").replace("/", ".")
    assert str(caught.value).endswith(f"Write it as a module: {right}.")


def test_users_module_named_as_a_module_is_told_of_no_ending(write_module):
    write_module("")
    with pytest.raises(NetworkError) as caught:
        build_network("mynet:build", num_classes=5, image_shape=RGB32)
    assert "as a module" not in str(caught.value)


def test_users_module_that_fails_says_the_cause(write_module):
    module = write_module("1 / 0\n")
    with pytest.raises(NetworkError, match="ZeroDivisionError: division by zero"):
        build_network(f"{module}:build", num_classes=5, image_shape=RGB32)


def test_users_module_without_the_function_names_its_file(write_module):
    module = write_module("")
    with pytest.raises(NetworkError, match=rf"{module}\.py has no function 'build'"):
        build_network(f"{module}:build", num_classes=5, image_shape=RGB32)


def test_users_function_that_fails_says_the_cause(write_module):
    module = write_module("def build():\n    raise ValueError('no such depth')\n")
    with pytest.raises(
        NetworkError, match=r"built: ValueError: no such depth\. Correct the function"
    ):
        build_network(f"{module}:build", num_classes=5, image_shape=RGB32)


def test_users_function_must_return_a_module(write_module):
    module = write_module("def build():\n    return 3\n")
    with pytest.raises(NetworkError, match=r"must be a torch.nn.Module, its builder returned int"):
        build_network(f"{module}:build", num_classes=5, image_shape=RGB32)


def test_every_own_network_has_a_config_that_builds_it():
    folder = Path(__file__).resolve().parents[2] / "conf" / "network"
    assert {path.stem for path in folder.glob("*.yaml")} == {*NETWORKS, "torchvision", "custom"}
    for name in NETWORKS:
        path = folder / f"{name}.yaml"
        assert path.read_text().startswith(f"# amc search network={name}")
        config = OmegaConf.to_container(OmegaConf.load(path))
        assert set(config) == {"name", "checkpoint", "options"}
        assert (config["name"], config["checkpoint"]) == (name, None)
        build_network(name, num_classes=2, image_shape=RGB32, **config["options"])


def test_number_of_outputs_that_nothing_says_is_the_networks_own_or_asked_for():
    with pytest.raises(NetworkError, match=r"told its number of outputs.*num_classes=<number>"):
        build_network("resnet20", num_classes=None, image_shape=RGB32)
    network = build_network("squeezenet1_1", num_classes=None, image_shape=RGB32)
    assert check_network(network, (3, 64, 64)).shape[1] == 1000
