from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amc.errors import NetworkError
from amc.networks import build_network, load_checkpoint, outputs_in

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def saved(state: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_each_format_restores_the_weights(tmp_path, suffix):
    source, target = tiny(1), tiny(2)
    load_checkpoint(target, saved(source.state_dict(), tmp_path / f"net{suffix}"))
    assert same_weights(source, target)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_weights_beside_a_training_state_are_found(tmp_path, wrapper):
    source, target = tiny(1), tiny(2)
    parallel = {f"module.{key}": value for key, value in source.state_dict().items()}
    load_checkpoint(target, saved({wrapper: parallel, "epoch": 3}, tmp_path / "net.pt"))
    assert same_weights(source, target)


def test_missing_counters_of_batch_normalisation_are_no_error(tmp_path):
    source, target = tiny(1), tiny(2)
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    load_checkpoint(target, saved(state, tmp_path / "net.safetensors"))
    assert same_weights(source, target)


def test_ignored_keys_are_neither_loaded_nor_required(tmp_path):
    source, target = tiny(1), tiny(2)
    state = source.state_dict()
    state["2.weight"] = torch.zeros(9, 4)  # of another class count
    del state["2.bias"]
    head = target[2].weight.clone()
    load_checkpoint(target, saved(state, tmp_path / "net.pt"), ignore=["2.*"])
    assert torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[2].weight, head)


def test_another_architecture_names_every_kind_of_mismatch_and_changes_nothing(tmp_path):
    state: dict[str, Tensor] = tiny(1).state_dict()
    state["0.weight"] = torch.zeros(5, 3, 3, 3)
    state["head.bias"] = state.pop("2.bias")
    target, untouched = tiny(2), tiny(2)
    with pytest.raises(NetworkError) as caught:
        load_checkpoint(target, saved(state, tmp_path / "net.pt"))
    message = str(caught.value)
    assert "seems to be of another architecture" in message
    assert "missing: 2.bias;" in message
    assert "unexpected: head.bias;" in message
    assert "0.weight (expected (4, 3, 3, 3), got (5, 3, 3, 3))" in message
    assert same_weights(target, untouched)


def test_long_lists_of_mismatches_are_cut_after_eight(tmp_path):
    state = tiny().state_dict() | {f"extra.{index}": torch.zeros(1) for index in range(11)}
    with pytest.raises(NetworkError, match=r"extra\.7 and 3 more\."):
        load_checkpoint(tiny(), saved(state, tmp_path / "net.pt"))


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_pickle_that_would_run_code_is_not_loaded(tmp_path):
    victim = tmp_path / "ran"
    path = saved({"state_dict": Hostile(victim)}, tmp_path / "net.pt")
    with pytest.raises(NetworkError, match=r"holds more than tensors .* was not loaded"):
        load_checkpoint(tiny(), path)
    assert not victim.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_file_is_named(tmp_path, suffix):
    path = saved(tiny().state_dict(), tmp_path / f"net{suffix}")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NetworkError, match=rf"net\{suffix}"):
        load_checkpoint(tiny(), path)


def test_file_without_weights_says_what_it_holds(tmp_path):
    path = saved({"epoch": 3, "best": 0.5}, tmp_path / "net.pt")
    with pytest.raises(NetworkError, match=r"must hold a state dict.*epoch: int, best: float"):
        load_checkpoint(tiny(), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = tiny().state_dict()
    state["2.weight"][0, 0] = value
    with pytest.raises(NetworkError, match=r"NaN or infinity in: 2\.weight"):
        load_checkpoint(tiny(), saved(state, tmp_path / "net.safetensors"))


def test_missing_file_and_unknown_format_are_named(tmp_path):
    with pytest.raises(NetworkError, match=r"not found: .*gone\.pt"):
        load_checkpoint(tiny(), tmp_path / "gone.pt")
    with pytest.raises(NetworkError, match=r"one of \.safetensors, \.pt, \.pth, got '\.h5'"):
        load_checkpoint(tiny(), tmp_path / "net.h5")


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="shared checkpoints are not on this machine")
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_shared_checkpoints_load(name):
    network = build_network(name, num_classes=10, image_shape=(3, 32, 32))
    load_checkpoint(network, CHECKPOINTS / f"{name}-cifar10jpeg.safetensors")


def test_number_of_outputs_is_read_where_the_checkpoint_differs_in_nothing_else(tmp_path):
    def of(outputs, hidden=3):
        return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    path = tmp_path / "net.pt"
    torch.save(of(7).state_dict(), path)
    assert outputs_in(path, of(5), 5) == 7
    assert outputs_in(path, of(7), 7) is None
    assert outputs_in(path, of(5, hidden=6), 5) is None  # another network
    with pytest.raises(NetworkError, match="Checkpoint not found"):
        outputs_in(tmp_path / "none.pt", of(5), 5)
