import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from amc.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    EvaluationError,
    NetworkError,
    StorageError,
)
from amc.objectives.classification import Classification
from amc.recovery import training, training_state
from amc.recovery.training import (
    AUGMENTATIONS,
    BASE_TRAINING,
    BEST_FILE,
    STATE_FILE,
    TrainingResult,
    TrainingSettings,
    learning_rate_at,
    train,
)
from amc.utils.layout import fast_layout

QUICK = TrainingSettings(
    epochs=3, learning_rate=0.05, batch_size=8, augment=("flip", "crop"), seed=3
)


class TinyNet(nn.Module):
    """One convolution with BN and dropout: all kinds of state and randomness that a loop meets."""

    def __init__(self, channels: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


def tiny_net(seed: int = 0, channels: int = 4, classes: int = 2) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(channels, classes)


def stripes(count: int = 40) -> tuple[Tensor, Tensor]:
    """Noisy horizontal stripes (class 0) and vertical ones (class 1), uint8 of 8 x 8."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(count) % 2
    horizontal = (torch.arange(8) % 2 * 200)[:, None].expand(8, 8)
    clean = torch.where(labels[:, None, None] == 0, horizontal, horizontal.T)
    noise = torch.randint(0, 56, clean.shape, generator=generator)
    return (clean + noise).to(torch.uint8)[:, None], labels


def fit(
    network: nn.Module, settings: TrainingSettings = QUICK, **options: object
) -> TrainingResult:
    images, labels = stripes()
    arguments = {"mean": [0.4], "std": [0.4], "progress": False, **options}
    return train(network, images, labels, settings=settings, **arguments)  # type: ignore[arg-type]


def scripted(*accuracies: float):  # type: ignore[no-untyped-def]
    """An ``evaluate`` that answers the start and then every epoch as told."""
    answers = iter(accuracies)
    return lambda network: next(answers)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ------------------------------------------------------------------------------- learning


def test_training_learns_to_tell_stripes_apart() -> None:
    settings = replace(QUICK, epochs=15, augment=("crop",))
    result = fit(tiny_net(), settings)
    images, labels = stripes()
    with torch.inference_mode():
        answers = result.network((images / 255 - 0.4) / 0.4).argmax(1)
    assert (answers == labels).float().mean() == 1
    assert result.complete
    assert result.history[-1].loss < result.history[0].loss / 2


def test_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    one, two, other = (fit(tiny_net(), replace(QUICK, seed=s)).network for s in (3, 3, 4))
    assert same_weights(one, two)
    assert not same_weights(one, other)


def test_training_leaves_the_callers_random_state_alone() -> None:
    network = tiny_net()
    before = torch.get_rng_state()
    fit(network)
    assert torch.equal(torch.get_rng_state(), before)


def test_float_images_in_0_to_1_train_like_their_uint8() -> None:
    images, labels = stripes()
    floating = train(
        tiny_net(), images / 255, labels, mean=[0.4], std=[0.4], settings=QUICK, progress=False
    )
    assert same_weights(floating.network, fit(tiny_net()).network)


def test_frozen_parameters_do_not_change() -> None:
    network = tiny_net()
    network.conv.requires_grad_(False)
    before = network.conv.weight.clone()
    fit(network)
    assert torch.equal(network.conv.weight, before)
    assert not torch.equal(network.fc.weight, tiny_net().fc.weight)


def test_traced_graph_trains_to_the_same_bits_as_its_module() -> None:
    traced = fx.symbolic_trace(tiny_net())
    assert same_weights(fit(traced).network, fit(tiny_net()).network)


def test_straight_through_fake_quantization_trains() -> None:
    class Quantized(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.fc.weight.detach().abs().max() / 7
            zero = torch.zeros((), dtype=torch.int32)
            weight = torch.fake_quantize_per_tensor_affine(self.fc.weight, scale, zero, -8, 7)
            pooled = torch.relu(self.bn(self.conv(x))).mean((2, 3))
            return nn.functional.linear(pooled, weight, self.fc.bias)

    torch.manual_seed(0)
    network = Quantized()
    before = network.fc.weight.clone()
    fit(network)
    assert not torch.equal(network.fc.weight, before)


def test_network_comes_back_in_eval_mode_and_in_the_usual_memory_layout() -> None:
    network = fit(tiny_net()).network
    assert not network.training
    assert network.get_submodule("conv").weight.is_contiguous()


class Flattened(TinyNet):
    """Flattens by ``view`` over more than one position."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(x.view(x.size(0), -1))


class Regrouped(TinyNet):
    """Regroups its channels by ``view``."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        count, channels, height, width = x.shape
        x = x.view(count * 2, channels // 2, height, width).cumsum(1)
        return self.fc(x.view(count, channels, height, width).mean((2, 3)))


class FlattenedInTraining(Flattened):
    """Flattens by ``view`` in training mode only."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(x.view(x.size(0), -1) if self.training else x.flatten(1))


class WithVolume(TinyNet):
    """Has a weight of five dimensions, for which there is no channels last of images."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Parameter(torch.ones(1, 1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.volume.flatten()


@pytest.mark.parametrize("build", [Flattened, Regrouped, FlattenedInTraining, WithVolume])
@pytest.mark.parametrize("role", ["network", "teacher"])
def test_network_that_cannot_take_channels_last_trains_without(
    build: type[TinyNet], role: str
) -> None:
    torch.manual_seed(0)
    odd, labels = build(), stripes()[1]
    settings = replace(QUICK, epochs=12, augment=(), distillation_weight=float(role == "teacher"))
    images = (stripes()[0] / 255 - 0.4) / 0.4

    def accuracy(network: nn.Module) -> float:
        with torch.inference_mode():
            return float((network(images).argmax(1) == labels).float().mean())

    teacher = fit(odd, replace(settings, distillation_weight=0.0), evaluate=accuracy).network
    assert accuracy(teacher) == 1
    if role == "teacher":
        assert accuracy(fit(tiny_net(), settings, evaluate=accuracy, teacher=teacher).network) == 1


def test_channels_last_is_taken_only_where_both_networks_take_it() -> None:
    torch.manual_seed(0)
    seen: list[bool] = []

    class Watching(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if self.training:
                seen.append(y.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    settings = replace(QUICK, epochs=1, distillation_weight=0.5)
    for teacher, expected in ((tiny_net(), True), (Flattened(), False)):
        seen.clear()
        fit(Watching(), settings, teacher=teacher)
        trained = seen[1:]  # the first was the try
        assert trained == [expected] * 5


def test_trying_a_layout_changes_nothing() -> None:
    network, before = tiny_net(), tiny_net()
    state = torch.get_rng_state()
    assert fast_layout(network, (1, 8, 8), training=True) == torch.channels_last
    assert same_weights(network, before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------- learning rate


def test_learning_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    settings = TrainingSettings(learning_rate=0.8, warmup_fraction=0.2)
    rates = [learning_rate_at(step, 20, settings) for step in (0, 1, 3, 4, 12, 20)]
    # 4 of 20 steps warm up; step 12 is half-way through the other 16.
    assert rates == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.4, 0.0])


def test_one_step_is_plain_sgd_with_nesterov_momentum_and_decay_on_matrices_only() -> None:
    images, labels = stripes(8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    linear = network[1]
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    settings = TrainingSettings(
        epochs=1, learning_rate=0.1, weight_decay=0.3, batch_size=8, warmup_fraction=0.0
    )
    train(network, images, labels, mean=[0.0], std=[1.0], settings=settings, progress=False)
    inputs = (images / 255).flatten(1)
    errors = (inputs @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 2)
    weight_gradient = errors.T @ inputs / 8 + 0.3 * weight
    bias_gradient = errors.mean(0)
    # Nesterov's first step is 1 + momentum gradients long.
    torch.testing.assert_close(linear.weight.detach(), weight - 0.1 * 1.9 * weight_gradient)
    torch.testing.assert_close(linear.bias.detach(), bias - 0.1 * 1.9 * bias_gradient)


# ---------------------------------------------------------------------------- distillation


def test_student_follows_a_teacher_that_contradicts_the_labels() -> None:
    images, labels = stripes()
    teacher = fit(tiny_net(), replace(QUICK, epochs=15, augment=())).network
    settings = replace(QUICK, epochs=20, augment=(), distillation_weight=1.0)
    student = train(
        tiny_net(seed=5),
        images,
        1 - labels,
        mean=[0.4],
        std=[0.4],
        settings=settings,
        teacher=teacher,
        progress=False,
    ).network
    with torch.inference_mode():
        answers = student((images / 255 - 0.4) / 0.4).argmax(1)
    assert (answers == labels).float().mean() == 1


def test_teacher_is_not_changed() -> None:
    teacher = tiny_net(seed=1)
    fit(tiny_net(), replace(QUICK, distillation_weight=0.5), teacher=teacher)
    assert same_weights(teacher, tiny_net(seed=1))
    assert all(parameter.grad is None for parameter in teacher.parameters())


# ---------------------------------------------------------------------------- augmentation


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    images = torch.arange(3.0).expand(200, 1, 1, 3)
    flipped = AUGMENTATIONS["flip"](images, torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0] == torch.tensor([2.0, 1.0, 0.0])).all(1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 70 < int(mirrored.sum()) < 130


def test_crop_shifts_by_up_to_an_eighth_of_each_side_and_fills_with_zeros() -> None:
    images = torch.zeros(300, 2, 16, 32)
    images[:, :, 8, 16] = 1
    cropped = AUGMENTATIONS["crop"](images, torch.Generator().manual_seed(0))
    sample, channel, row, column = cropped.nonzero().T
    assert cropped.shape == images.shape
    assert len(sample) == 300 * 2
    assert set(row.tolist()) == set(range(8 - 2, 8 + 2 + 1))
    assert set(column.tolist()) == set(range(16 - 4, 16 + 4 + 1))
    # Both channels of an image move together.
    assert torch.equal(row[channel == 0], row[channel == 1])
    assert torch.equal(column[channel == 0], column[channel == 1])


# ------------------------------------------------------------------------------- the best


def test_weights_of_the_best_epoch_come_back(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    accuracies = iter([0.1, 0.5, 0.9, 0.7])

    def evaluate(network: nn.Module) -> float:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(accuracies)

    result = fit(tiny_net(), evaluate=evaluate, checkpoint_folder=tmp_path)
    assert (result.best_epoch, result.best_score) == (2, 0.9)
    assert [record.score for record in result.history] == [0.5, 0.9, 0.7]
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, seen[2][name])
        assert torch.equal(tensor, load_file(tmp_path / BEST_FILE)[name])


def test_of_equally_accurate_epochs_the_last_is_the_best() -> None:
    assert fit(tiny_net(), evaluate=scripted(0.1, 0.9, 0.9, 0.7)).best_epoch == 2


def test_a_start_that_no_epoch_beats_comes_back_unchanged() -> None:
    result = fit(tiny_net(), evaluate=scripted(0.9, 0.1, 0.2, 0.3))
    assert (result.best_epoch, result.best_score) == (0, 0.9)
    assert same_weights(result.network, tiny_net())


def test_without_evaluate_the_last_epoch_is_kept() -> None:
    result = fit(tiny_net())
    assert (result.best_epoch, result.best_score) == (3, None)


# --------------------------------------------------------------------- stopping and resuming


class Killed(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


def test_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def kill_after_second(record: training.EpochRecord) -> None:
        if record.epoch == 2:
            raise Killed

    settings = replace(QUICK, epochs=4)
    whole = fit(tiny_net(), settings, evaluate=scripted(0, 0.5, 0.1, 0.2, 0.6))
    with pytest.raises(Killed):
        fit(
            tiny_net(),
            settings,
            evaluate=scripted(0, 0.5, 0.1),
            checkpoint_folder=tmp_path,
            on_epoch=kill_after_second,
        )
    told: list[int] = []
    resumed = fit(
        tiny_net(),
        settings,
        evaluate=scripted(0.2, 0.6),
        checkpoint_folder=tmp_path,
        on_epoch=lambda record: told.append(record.epoch),
    )
    assert told == [3, 4]
    assert resumed.history == whole.history
    assert (resumed.best_epoch, resumed.best_score) == (4, 0.6)
    assert same_weights(resumed.network, whole.network)


def test_resumed_training_remembers_a_best_epoch_from_before(tmp_path: Path) -> None:
    accuracies = (0.1, 0.9, 0.2, 0.3)
    whole = fit(tiny_net(), evaluate=scripted(*accuracies))
    stops = iter([False] * 7 + [True])  # 5 steps of an epoch, then into the second
    fit(
        tiny_net(),
        evaluate=scripted(*accuracies),
        checkpoint_folder=tmp_path,
        should_stop=lambda: next(stops),
    )
    (tmp_path / BEST_FILE).unlink()  # as if killed between the two files
    resumed = fit(tiny_net(), evaluate=scripted(0.2, 0.3), checkpoint_folder=tmp_path)
    assert resumed.best_epoch == 1
    assert same_weights(resumed.network, whole.network)
    best = load_file(tmp_path / BEST_FILE)
    assert torch.equal(best["conv.weight"], whole.network.state_dict()["conv.weight"])


def test_finished_training_is_read_back_without_training(tmp_path: Path) -> None:
    first = fit(tiny_net(), evaluate=scripted(0.1, 0.9, 0.2, 0.3), checkpoint_folder=tmp_path)
    again = fit(tiny_net(), evaluate=scripted(), checkpoint_folder=tmp_path)
    assert again.complete
    assert again.history == first.history
    assert same_weights(again.network, first.network)


def test_should_stop_returns_the_best_so_far() -> None:
    stops = iter([False] * 8 + [True])
    result = fit(tiny_net(), evaluate=scripted(0.1, 0.8), should_stop=lambda: next(stops))
    assert not result.complete
    assert (len(result.history), result.best_epoch, result.best_score) == (1, 1, 0.8)


def test_stop_before_the_first_step_returns_the_start() -> None:
    result = fit(tiny_net(), should_stop=lambda: True)
    assert (result.complete, result.best_epoch, result.history) == (False, 0, ())
    assert same_weights(result.network, tiny_net())


def test_ctrl_c_returns_the_best_so_far_and_leaves_a_state_to_resume(tmp_path: Path) -> None:
    whole = fit(tiny_net())

    def interrupt(record: training.EpochRecord) -> None:
        raise KeyboardInterrupt

    result = fit(tiny_net(), checkpoint_folder=tmp_path, on_epoch=interrupt)
    assert (result.complete, result.best_epoch) == (False, 1)
    resumed = fit(tiny_net(), checkpoint_folder=tmp_path)
    assert resumed.complete
    assert same_weights(resumed.network, whole.network)


def test_state_is_one_file_of_numbers_and_json(tmp_path: Path) -> None:
    fit(tiny_net(), checkpoint_folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {STATE_FILE, BEST_FILE}
    with safe_open(tmp_path / STATE_FILE, framework="pt") as opened:
        document = json.loads(json.loads(opened.metadata()["amc-training"])["document"])
    assert len(document["history"]) == QUICK.epochs
    assert document["identity"]["learning_rate"] == QUICK.learning_rate


# ----------------------------------------------------------- a state of something else


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": replace(QUICK, learning_rate=0.01)}, "learning_rate was 0.05, now 0.01"),
        ({"settings": replace(QUICK, augment=())}, "augment was ['flip', 'crop'], now []"),
        ({"network": tiny_net(channels=3)}, "shape of conv.weight was [4, 1, 3, 3], now [3,"),
        ({"network": tiny_net(seed=1)}, "starting weights was"),
        ({"teacher": tiny_net(seed=1)}, "teacher was None, now"),
        ({"mean": [0.5]}, "data was"),
        ({"objective": Classification(False)}, "objective was 'Classification(probabilities=None"),
    ],
)
def test_state_of_another_training_is_refused_and_says_what_changed(
    change: dict[str, object], named: str, tmp_path: Path
) -> None:
    fit(tiny_net(), checkpoint_folder=tmp_path)
    arguments = {"network": tiny_net(), "checkpoint_folder": tmp_path, **change}
    with pytest.raises(ArtifactError) as caught:
        fit(**arguments)  # type: ignore[arg-type]
    assert named in str(caught.value)
    assert "another folder" in str(caught.value)


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"\x00" * 30)
    with pytest.raises(ArtifactError, match=r"not a readable safetensors.*Remove it to start"):
        fit(tiny_net(), checkpoint_folder=tmp_path)


def test_changed_bit_in_a_state_is_found_by_its_checksum(tmp_path: Path) -> None:
    fit(tiny_net(), checkpoint_folder=tmp_path)
    content = bytearray((tmp_path / STATE_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"does not have its checksum\. Remove it to start"):
        fit(tiny_net(), checkpoint_folder=tmp_path)


def test_same_training_leaves_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        fit(tiny_net(), checkpoint_folder=tmp_path / folder)
    one, other = (tmp_path / folder / STATE_FILE for folder in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / STATE_FILE)
    with pytest.raises(ArtifactError, match=r"not the state of a training.*Remove it"):
        fit(tiny_net(), checkpoint_folder=tmp_path)


def test_state_of_another_version_is_refused(tmp_path: Path) -> None:
    metadata = {"amc-training": json.dumps({"version": 99})}
    save_file({"a": torch.zeros(1)}, tmp_path / STATE_FILE, metadata)
    with pytest.raises(ArtifactError, match=r"version 99, this amc reads 4\. Remove it"):
        fit(tiny_net(), checkpoint_folder=tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"identity": None}, "'identity' must be an object, got None"),
        ({"history": [1]}, "'history' must be a list, each epoch, loss, learning_rate"),
        ({"history": [{"epoch": 1}]}, "train_score, score of an epoch, got"),
        ({"best_epoch": -1}, "'best_epoch' must be a whole number from 0, got -1"),
        ({"best_score": "high"}, "'best_score' must be a number, or null, got 'high'"),
        ({"scaler": 3}, "'scaler' must be an object, got 3"),
    ],
)
def test_state_whose_document_is_not_one_is_refused(
    values: dict[str, object], said: str, tmp_path: Path
) -> None:
    fit(tiny_net(), checkpoint_folder=tmp_path)
    tensors, document = training_state.STATE.read(tmp_path / STATE_FILE)
    training_state.STATE.write(tmp_path / STATE_FILE, tensors, document | values)
    with pytest.raises(ArtifactError, match=rf"{said}.*Remove it to start over"):
        fit(tiny_net(), checkpoint_folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("weights/fc.weight", None),
        ("weights/fc.weight", torch.zeros(9)),
        ("best/bn.bias", None),
        ("momentum/other", torch.zeros(4)),
        ("momentum/fc.bias", torch.zeros(9)),
    ],
)
def test_state_whose_tensors_are_not_the_networks_is_refused(
    name: str, tensor: Tensor | None, tmp_path: Path
) -> None:
    fit(tiny_net(), checkpoint_folder=tmp_path)
    tensors, document = training_state.STATE.read(tmp_path / STATE_FILE)
    changed = {n: t for n, t in (tensors | {name: tensor}).items() if t is not None}
    training_state.STATE.write(tmp_path / STATE_FILE, changed, document)
    missing = name.partition("/")[2]
    with pytest.raises(
        ArtifactError, match=rf"does not fit the network: \['{missing}'\].*Remove it"
    ):
        fit(tiny_net(), checkpoint_folder=tmp_path)


def test_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        fit(tiny_net(), checkpoint_folder=blocked)


# ------------------------------------------------------------------------- clear refusals


def test_loss_that_is_not_finite_names_epoch_and_step_and_says_what_to_do() -> None:
    network = tiny_net()
    calls: list[int] = []

    def spoil(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        calls.extend([1] if len(output) == 8 else [])  # not where a layout is tried
        return output * (float("nan") if len(calls) == 7 else 1.0)

    network.fc.register_forward_hook(spoil)
    # 40 images are 5 steps of 8: the seventh forward is step 2 of epoch 2.
    with pytest.raises(EvaluationError, match=r"nan in epoch 2, step 2 of 5.*learning rate"):
        fit(network)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distillation_weight=0.5 needs a teacher"):
        fit(tiny_net(), replace(QUICK, distillation_weight=0.5))


def test_teacher_of_other_classes_is_refused() -> None:
    settings = replace(QUICK, distillation_weight=0.5)
    with pytest.raises(NetworkError, match=r"shape \(8, 2\), got a tensor of shape \(8, 3\)"):
        fit(tiny_net(), settings, teacher=tiny_net(classes=3))


def test_network_with_too_few_outputs_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"fit the network: they have class 1, and .* 1 classes"):
        fit(tiny_net(classes=1))


def test_network_whose_outputs_are_no_scores_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"\(8, 4, 6, 6\) for 8 images; expected a tensor"):
        fit(nn.Conv2d(1, 4, 3))


def test_network_without_anything_to_train_is_refused() -> None:
    with pytest.raises(NetworkError, match="nothing to train"):
        fit(tiny_net().requires_grad_(False))
    with pytest.raises(NetworkError, match="no parameters"):
        fit(nn.Flatten())


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(4, 1, 8, 8), torch.zeros(5, dtype=torch.long)),
        (torch.zeros(4, 8, 8), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), torch.zeros(4, dtype=torch.long)),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"got|must be"):
        train(tiny_net(), images, labels, mean=[0.0], std=[1.0], settings=QUICK, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("warmup_fraction", 1.0),
        ("label_smoothing", -0.1),
        ("distillation_weight", 1.1),
        ("temperature", 0.0),
    ],
)
def test_setting_outside_its_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"setting {name} must be"):
        replace(BASE_TRAINING, **{name: value})  # type: ignore[arg-type]


def test_unknown_augmentation_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"\['rotate'\].*'flip', 'crop'"):
        replace(QUICK, augment=("rotate",))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_on_cuda_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def interrupt(record: training.EpochRecord) -> None:
        raise KeyboardInterrupt

    whole = fit(tiny_net().cuda())
    fit(tiny_net().cuda(), checkpoint_folder=tmp_path, on_epoch=interrupt)
    assert same_weights(fit(tiny_net().cuda(), checkpoint_folder=tmp_path).network, whole.network)


# ------------------------------------------------------------------ probabilities, no labels


class Softmax(nn.Module):
    """A network that ends with a softmax."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


def test_network_that_ends_with_a_softmax_learns_as_by_its_logits() -> None:
    settings = replace(QUICK, distillation_weight=0.5)
    plain = fit(tiny_net(), settings, teacher=tiny_net(1))
    ended = fit(Softmax(tiny_net()), settings, teacher=Softmax(tiny_net(1)))
    for expected, found in zip(plain.history, ended.history, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.train_score == expected.train_score


def test_without_labels_the_teacher_alone_is_learned_from() -> None:
    images, labels = stripes()
    options = {"mean": [0.4], "std": [0.4], "progress": False, "teacher": tiny_net(1)}
    settings = replace(QUICK, distillation_weight=0.3)
    found = train(
        tiny_net(), images, None, settings=settings, evaluate=scripted(-3.0, -2.0, -1.0, -1.5),
        **options,
    )  # type: ignore[arg-type]  # fmt: skip
    alone = train(
        tiny_net(), images, labels, settings=replace(settings, distillation_weight=1.0), **options
    )  # type: ignore[arg-type]
    assert [e.loss for e in found.history] == [e.loss for e in alone.history]
    assert [e.score for e in found.history] == [-2.0, -1.0, -1.5]
    assert {e.train_score for e in found.history} == {None}
    assert (found.best_epoch, found.best_score) == (2, -1.0)


@pytest.mark.parametrize("given", [{"teacher": None}, {"distillation_weight": 0.0}])
def test_without_labels_and_a_teacher_there_is_nothing_to_learn_from(given: dict) -> None:
    teacher = given.get("teacher", tiny_net(1))
    settings = replace(QUICK, distillation_weight=given.get("distillation_weight", 0.5))
    with pytest.raises(ConfigError, match=r"the original alone.*distillation_weight above 0"):
        train(
            tiny_net(), stripes()[0], None, mean=[0.4], std=[0.4], settings=settings,
            teacher=teacher,
        )  # fmt: skip
