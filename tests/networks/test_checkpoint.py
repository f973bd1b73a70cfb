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


# -- what a .pt file may hold ---------------------------------------------------------------


def test_checkpoint_of_before_pytorch_1_6_restores_the_weights(tmp_path):
    source, target = tiny(1), tiny(2)
    content = {"model": source.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    load_checkpoint(target, tmp_path / "net.pt")
    assert same_weights(source, target)


@pytest.mark.parametrize("protocol", [2, 4])
def test_everything_that_a_training_script_keeps_beside_the_weights_is_passed_over(
    tmp_path, protocol
):
    source, target = tiny(1), tiny(2)
    optimizer = torch.optim.Adam(source.parameters())
    for parameter in source.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # holds a Counter
    content = {
        "model": source.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "plain": [b"bytes", bytearray(b"more"), 1 + 2j, torch.Size([1, 2]), torch.float8_e4m3fn],
        "device": torch.device("cuda:0"),
    }
    torch.save(content, tmp_path / "net.pt", pickle_protocol=protocol)
    load_checkpoint(target, tmp_path / "net.pt")
    assert same_weights(source, target)


def test_shared_sliced_and_rearranged_tensors_keep_their_values(tmp_path):
    source, target = tiny(1), tiny(2)
    state = dict(source.named_parameters()) | dict(source.named_buffers())
    state["0.weight"] = source[0].weight.detach().to(memory_format=torch.channels_last)
    state["2.weight"] = torch.stack([torch.zeros(4, 2), source[2].weight.detach().t()])[1].t()
    state["1.weight"] = torch.ones(1).expand(4)
    load_checkpoint(target, saved(state, tmp_path / "net.pt"))
    assert same_weights(source, target)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_float8_weights_load_as_the_numbers_that_they_are(tmp_path, suffix):
    target = nn.Sequential(nn.Linear(2, 2, bias=False))
    weight = torch.tensor([[0.5, -1.75], [448.0, 2.0**-9]]).to(torch.float8_e4m3fn)
    load_checkpoint(target, saved({"0.weight": weight}, tmp_path / f"net{suffix}"))
    assert target[0].weight.tolist() == [[0.5, -1.75], [448.0, 2.0**-9]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused_by_name(tmp_path, dtype):
    state = {"0.weight": torch.zeros(2, 2, dtype=dtype)}
    with pytest.raises(NetworkError, match=rf"no real numbers: 0\.weight .*float32, got {dtype}"):
        load_checkpoint(nn.Sequential(nn.Linear(2, 2, bias=False)), saved(state, tmp_path / "n.pt"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (lambda: torch.zeros(4, device="meta"), r"0\.weight: a meta tensor, which has no numbers"),
        (lambda: torch.eye(3).to_sparse(), r"0\.weight: a sparse tensor"),
        (
            lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            r"0\.weight: a nested tensor",
        ),
        (
            lambda: torch.nested.nested_tensor(
                [torch.zeros(2), torch.zeros(3)], layout=torch.jagged
            ),
            r"holds more than tensors \(a nested tensor\)",
        ),
        (
            lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            r"0\.weight: a quantized tensor",
        ),
    ],
)
def test_tensor_that_is_no_plain_array_is_named(tmp_path, tensor, said):
    with pytest.raises(NetworkError, match=said):
        load_checkpoint(tiny(), saved({"0.weight": tensor()}, tmp_path / "net.pt"))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_program_is_not_run(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "net.pt")
    with pytest.raises(NetworkError, match=r"\(a TorchScript program\).*Save network\.state_dict"):
        load_checkpoint(tiny(), tmp_path / "net.pt")


def test_whole_module_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(tiny(), tmp_path / "net.pt")
    with pytest.raises(NetworkError, match=r"\(torch\.nn\.modules\.container\.Sequential\)"):
        load_checkpoint(tiny(), tmp_path / "net.pt")


def test_names_in_a_message_are_short_and_fit_for_printing(tmp_path):
    state = tiny().state_dict() | {"x" * 5000: torch.zeros(1), "\x1b[2J": torch.zeros(1)}
    with pytest.raises(NetworkError, match="seems to be of another architecture") as caught:
        load_checkpoint(tiny(), saved(state, tmp_path / "net.pt"))
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


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
