from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from amc.errors import ConfigError, NetworkError
from amc.objectives.classification import Classification
from amc.recovery.distillation import Distillation, Ensemble, attention, similarity
from tests.recovery.test_training import QUICK, fit, same_weights, tiny_net

CLASSES = Classification(probabilities=False)


class Stages(nn.Module):
    """Two residual stages, of 8 x 8 and of 4 x 4."""

    def __init__(self, channels: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.last = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.fc = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(x)[-1].mean((2, 3)))

    def stages(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(x))
        one = torch.relu(x + self.inner(x))
        x = torch.relu(self.down(one))
        return [one, torch.relu(x + self.last(x))]


def staged(seed: int, channels: int = 4) -> Stages:
    torch.manual_seed(seed)
    return Stages(channels).eval()


def loss_of(student: nn.Module, teacher: nn.Module, images: Tensor, **weights: float) -> Tensor:
    distilled = Distillation(student, teacher, weights, (1, 8, 8), 4.0)
    outputs, by_teacher = distilled(images)
    return by_teacher(outputs, CLASSES)


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_attention_compares_where_squares_are_whatever_their_size_and_number() -> None:
    there = torch.zeros(1, 2, 1, 2)
    there[0, :, 0, 0] = 3
    elsewhere = torch.zeros(1, 5, 1, 2)
    elsewhere[0, :, 0, 1] = 0.1
    assert attention(there, there[:, :1] * 7) == 0
    assert attention(there, elsewhere) == 1  # (1, 0) and (0, 1): a mean of 1 and 1


def test_similarity_compares_which_images_are_alike() -> None:
    alike, different = torch.ones(2, 3), torch.eye(2)
    assert similarity(alike, 5 * alike[:, :1]) < 1e-12
    # Rows (1, 1) / sqrt(2) against those of the identity: (0.293^2 + 0.707^2) * 2 / 4.
    root = 0.5**0.5
    expected = (2 * (1 - root) ** 2 + 2 * root**2) / 4
    torch.testing.assert_close(similarity(alike, different), torch.tensor(expected))


@pytest.mark.parametrize(("name", "of_pair"), [("at", attention), ("sp", similarity)])
def test_ends_of_stages_are_compared(name: str, of_pair) -> None:  # type: ignore[no-untyped-def]
    student, teacher = staged(0), staged(1, channels=6)
    pairs = zip(student.stages(IMAGES), teacher.stages(IMAGES), strict=True)
    expected = torch.stack([of_pair(*pair) for pair in pairs]).sum()
    found = loss_of(fx.symbolic_trace(student), teacher, IMAGES, **{name: 2.0})
    torch.testing.assert_close(found, 2 * expected)


def test_losses_are_weighted_and_summed() -> None:
    student, teacher = fx.symbolic_trace(staged(0)), staged(1)
    parts = {"kd": 0.5, "at": 100.0, "sp": 1000.0}
    alone = [loss_of(student, teacher, IMAGES, **{name: weight}) for name, weight in parts.items()]
    torch.testing.assert_close(loss_of(student, teacher, IMAGES, **parts), sum(alone))


def test_mean_of_several_teachers_is_learned() -> None:
    student, teachers = fx.symbolic_trace(staged(0)), [staged(1), staged(2, channels=5)]
    mean = torch.stack([teacher(IMAGES) for teacher in teachers]).mean(0)
    expected = 16 * functional.kl_div(
        (student(IMAGES) / 4).log_softmax(1),
        (mean / 4).softmax(1),
        reduction="batchmean",
    )
    ensemble = Ensemble(teachers)
    torch.testing.assert_close(loss_of(student, ensemble, IMAGES, kd=1.0), expected)
    torch.testing.assert_close(ensemble(IMAGES), mean)
    inner = [loss_of(student, teacher, IMAGES, at=1.0) for teacher in teachers]
    found = loss_of(student, ensemble, IMAGES, at=1.0)
    torch.testing.assert_close(found, torch.stack(inner).mean())


def test_all_losses_train_the_network_that_is_given_and_leave_the_teacher_alone() -> None:
    settings = replace(
        QUICK, distillation_weight=0.8, distill={"kd": 1.0, "at": 100.0, "sp": 100.0}
    )
    student, teacher = fx.symbolic_trace(staged(0)), staged(1)
    one = fit(student, settings, teacher=teacher).network
    assert one is student
    assert not same_weights(one, staged(0))
    assert same_weights(teacher, staged(1))
    assert same_weights(one, fit(fx.symbolic_trace(staged(0)), settings, teacher=teacher).network)
    outputs_alone = replace(settings, distill={"kd": 1.0})
    other = fit(fx.symbolic_trace(staged(0)), outputs_alone, teacher=teacher).network
    assert not same_weights(one, other)


def test_stages_of_a_network_that_amc_did_not_make_are_not_known() -> None:
    with pytest.raises(ConfigError, match=r"distill\.at compares what is inside of networks"):
        loss_of(staged(0), staged(1), IMAGES, at=1.0)


def test_networks_without_a_common_size_of_maps_are_refused() -> None:
    class Strided(Stages):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, ::4, ::4])

    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"share none: \[8, 8\], \[4, 4\]; \[2, 2\]"):
        loss_of(fx.symbolic_trace(staged(0)), Strided().eval(), IMAGES, at=1.0)


def test_teachers_that_return_different_things_have_no_mean() -> None:
    torch.manual_seed(0)
    three = Stages(classes=3).eval()
    said = r"must return the same, got a tensor of shape \(6, 2\) and a tensor of shape \(6, 3\)"
    with pytest.raises(ConfigError, match=said):
        loss_of(fx.symbolic_trace(staged(0)), Ensemble([staged(1), three]), IMAGES, kd=1.0)


def test_teacher_of_other_classes_is_refused() -> None:
    teacher = tiny_net(classes=3)
    with pytest.raises(NetworkError, match="The teacher must return what the network returns"):
        fit(tiny_net(), replace(QUICK, distillation_weight=0.5), teacher=teacher)


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ({"kl": 1.0}, "weights of some of kd, at, sp, got {'kl': 1.0}"),
        ({"kd": -1.0}, "must be numbers from 0, at least one above"),
        ({"kd": float("inf")}, "must be numbers from 0, at least one above"),
        ({"kd": 0, "at": 0.0}, "at least one above, got {'kd': 0, 'at': 0.0}"),
        ({}, "at least one above"),
    ],
)
def test_weights_of_losses_are_checked(distill: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(QUICK, distill=distill)
