"""Segmentation: a class for every pixel."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amc
from amc.errors import ConfigError
from amc.export import check_parity
from amc.objectives import Segmentation, build_objective
from amc.problem import local
from amc.recovery.training import train
from amc.utils.measure import Timing
from docs.examples.dense_labels import toy_data, toy_network

NONE = 255
SMALL: dict[str, Any] = {"search_images": 20, "final_candidates": 2, "store": False}


def maps(rows: list[list[int]], classes: int = 3) -> Tensor:
    """Logits of one image that decide for these classes: log 2 there, 0 elsewhere."""
    decided = torch.tensor(rows)
    return nn.functional.one_hot(decided, classes).permute(2, 0, 1)[None] * math.log(2.0)


def judged(outputs: Tensor, targets: Tensor | None, reference: Tensor | None = None) -> Any:
    found = Segmentation().judge(outputs, targets, reference)
    return {name: float(score) for name, score in found.items()}


def test_mean_iou_is_over_classes_that_there_are_and_pixels_that_have_one() -> None:
    targets = torch.tensor([[[0, 1, 1, 1, NONE]]], dtype=torch.uint8)
    found = judged(maps([[0, 0, 1, 1, 2]]), targets)
    # class 0: 1 of 2 pixels; class 1: 2 of 3; class 2 is only where nothing counts
    assert found == {
        "mean_iou": pytest.approx((1 / 2 + 2 / 3) / 2),
        "pixel_accuracy": pytest.approx(3 / 4),
    }


def test_mean_iou_is_of_all_images_together() -> None:
    outputs = torch.cat([maps([[0, 0]]), maps([[1, 0]])])
    targets = torch.tensor([[[0, 1]], [[1, 1]]])
    # class 0: 1 of 3 pixels; class 1: 1 of 3. (By image: (1/2 + 0) / 2 and (0 + 1/2) / 2.)
    assert judged(outputs, targets)["mean_iou"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    nothing = torch.full((2, 1, 2), NONE)
    assert judged(outputs, nothing) == {"mean_iou": 0, "pixel_accuracy": 0}


def test_mean_iou_is_that_of_a_loop_over_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.objectives.segmentation._VALUES", 100)  # several parts
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 4, 3, 5, generator=draw)
    targets = torch.randint(5, (7, 3, 5), generator=draw)
    targets[targets == 4] = NONE
    both, either = [0] * 4, [0] * 4
    for decided, target in zip(outputs.argmax(1).flatten(), targets.flatten(), strict=True):
        if target != NONE:
            for kind in range(4):
                both[kind] += int(decided == kind and target == kind)
                either[kind] += int(decided == kind or target == kind)
    expected = float(np.mean([b / e for b, e in zip(both, either, strict=True)]))
    assert judged(outputs, targets)["mean_iou"] == pytest.approx(expected, abs=1e-12)


def test_mean_iou_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.classification")
    draw = torch.Generator().manual_seed(1)
    outputs = torch.randn(4, 5, 6, 6, generator=draw)
    targets = torch.randint(5, (4, 6, 6), generator=draw)
    targets[:, 0] = NONE
    theirs = metrics.MulticlassJaccardIndex(5, ignore_index=NONE)(outputs, targets)
    assert judged(outputs, targets)["mean_iou"] == pytest.approx(float(theirs), abs=1e-6)


def test_agreement_and_same_pixels_need_no_labels() -> None:
    found = judged(maps([[0, 0, 1, 1]]), None, torch.zeros(1, 3, 1, 4))
    assert found["same_pixels"] == 2 / 4  # zeros decide for class 0
    # 1/3 each against 1/2, 1/4, 1/4
    divergence = -sum(math.log(3 * p) for p in (1 / 2, 1 / 4, 1 / 4)) / 3
    assert found["agreement"] == pytest.approx(-divergence)


def test_half_the_squared_pull_of_sampled_targets_is_the_divergence() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 3, 4, 5)
    change = 1e-2 * torch.randn(1, 3, 4, 5)
    expected = float(Segmentation().divergence(scores + change, scores))
    many = scores.expand(20_000, -1, -1, -1).clone().requires_grad_()
    loss = Segmentation().sampled_loss(many, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert many.grad is not None
    pulls = (many.grad * change).flatten(1).sum(1)
    assert float(pulls.square().mean() / 2) == pytest.approx(expected, rel=0.05)


def test_one_channel_tells_two_classes_apart() -> None:
    logits = torch.tensor([[[[-1.0, 2.0, 0.5]]]])
    targets = torch.tensor([[[0, 1, 0]]])
    plain = Segmentation().fitted(logits)
    ends_with_sigmoid = Segmentation().fitted(logits.sigmoid())
    assert (plain.probabilities, ends_with_sigmoid.probabilities) == (False, True)
    assert plain.classes == ends_with_sigmoid.classes == 2
    for objective, outputs in ((plain, logits), (ends_with_sigmoid, logits.sigmoid())):
        assert objective.decisions(outputs).tolist() == [[[0, 1, 1]]]
        assert float(objective.judge(outputs, targets, None)["pixel_accuracy"]) == pytest.approx(
            2 / 3
        )
        expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
        assert float(objective.target_loss(outputs, targets, 0.0)) == pytest.approx(float(expected))


def test_probabilities_are_scored_as_their_logits_are() -> None:
    torch.manual_seed(0)
    logits, other = torch.randn(2, 1, 3, 4, 4).unbind()
    objective = Segmentation().fitted(logits.softmax(1))
    assert objective.probabilities
    assert "the network gives probabilities" in objective.notes[0]
    torch.testing.assert_close(
        objective.divergence(logits.softmax(1), other.softmax(1)),
        Segmentation(probabilities=False).divergence(logits, other),
    )


def test_losses_are_means_over_pixels_that_have_a_class() -> None:
    outputs, teacher = maps([[0, 1]]), maps([[0, 0]])
    targets = torch.tensor([[[1, NONE]]])
    assert float(Segmentation().target_loss(outputs, targets, 0.0)) == pytest.approx(math.log(4))
    assert float(Segmentation().target_loss(outputs, torch.full((1, 1, 2), NONE), 0.0)) == 0
    # the first pixel is the teacher's; of the second 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4
    divergence = (1 / 2 - 1 / 4) * math.log(2)
    found = float(Segmentation().teacher_loss(outputs, teacher, 1.0))
    assert found == pytest.approx(divergence / 2)


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (torch.zeros(1, 2, 4), "torch.float32 of shape (1, 2, 4), not one class for each pixel"),
        (torch.zeros(1).long(), "torch.int64 of shape (1,), not one class for each pixel"),
        (torch.zeros(1, 4, 2).long(), "maps of 4x2, and the network's outputs of 2x4"),
        (torch.full((1, 2, 4), 3), "class 3, and the network scores 3 classes (from 0); where 3"),
        (torch.full((1, 2, 4), -1), "class -1, and the network scores 3 classes"),
        (torch.full((1, 2, 4), NONE), "all of them are 255, which is no class"),
        (torch.full((1, 2, 4), 2), ""),
    ],
)
def test_targets_that_do_not_fit_are_told_why(targets: Tensor, why: str) -> None:
    found = Segmentation().mismatch(torch.zeros(1, 3, 2, 4), targets)
    assert why in found
    assert bool(why) == bool(found)


def test_another_number_may_say_that_a_pixel_is_of_no_class() -> None:
    targets = torch.tensor([[[0, 1, 3, 3]]])
    objective, outputs = Segmentation(ignored=3), maps([[0, 1, 2, 2]])
    assert "objective=amc.Segmentation(ignored=3)" in Segmentation().mismatch(outputs, targets)
    assert objective.mismatch(outputs, targets) == ""
    assert float(objective.judge(outputs, targets, None)["mean_iou"]) == 1


def test_an_untrained_network_is_doubted() -> None:
    objective = Segmentation().fitted(torch.randn(2, 10, 4, 4))
    assert "mean IoU is only 15.00 % on the search images" in objective.doubt({"mean_iou": 0.15})
    assert objective.doubt({"mean_iou": 0.25}) == ""
    assert objective.doubt({"agreement": -1}) == ""


def test_it_suits_maps_with_a_class_for_each_pixel() -> None:
    outputs, targets = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5).long()
    assert isinstance(build_objective("segmentation"), amc.Segmentation)
    assert Segmentation().suits(outputs, targets)
    assert not Segmentation().suits(outputs, None)
    assert not Segmentation().suits(outputs, targets.float())
    assert not Segmentation().suits(outputs[..., 0, 0], targets[..., 0, 0])
    assert Segmentation().fits(outputs, 2)
    assert not Segmentation().fits(outputs[..., 0], 2)


# -- from end to end -----------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
    monkeypatch.setattr(local, "measure_latency", lambda *_, **__: timed)
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.setattr("amc.study.result.plot_learning_curve", lambda *_, **__: None)


@pytest.mark.usefixtures("_quick")
def test_a_network_is_searched_trained_and_exported_by_mean_iou(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = toy_data()
    network = toy_network(data)
    budget = amc.Budget("macs", fraction=0.5)
    result = amc.search(
        network, data, None, budget, objective="segmentation", agent="random", evaluations=4,
        folder=tmp_path / "run", **SMALL,
    )  # fmt: skip
    assert "original: mean_iou 9" in caplog.text
    assert "test (IoU %)" in str(result).splitlines()[0]
    assert "test (pixels %)" in str(result).splitlines()[0]
    settings = amc.TrainingSettings(
        epochs=2, distillation_weight=0.5, batch_size=16, augment=("flip",)
    )
    trained = amc.finetune(
        result.network, network, data, settings=settings, objective="segmentation"
    )
    assert trained.history[1].loss < trained.history[0].loss
    assert trained.best_score is not None
    assert trained.best_score > 0.5
    images = data.search.normalised(data.mean, data.std)
    path = amc.export_onnx(trained.network, data.image_shape, tmp_path / "net.onnx").path
    parity = check_parity(path, trained.network, images, data.search.labels, Segmentation())
    assert parity.same == 1
    assert list(parity.onnx_scores) == ["mean_iou", "pixel_accuracy"]


def test_masks_are_flipped_with_their_images_and_never_shifted() -> None:
    class Last(nn.Module):
        """Notes its batches, and gives two logits of every pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.seen = nn.Parameter(torch.ones(1)), list[Tensor]()

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(images.detach().clone())
            return torch.cat([-images, images], 1) * self.scale

    class Pairs(Segmentation):
        def target_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
            pairs.append((outputs[:, 1].detach() > 0, targets == 1))
            return super().target_loss(outputs, targets, label_smoothing)

    pairs: list[tuple[Tensor, Tensor]] = []
    images = torch.zeros(16, 1, 2, 4)
    images[..., 0] = 1  # the left column is of class 1
    masks = images[:, 0].to(torch.uint8)
    settings = amc.TrainingSettings(epochs=1, batch_size=16, augment=("flip",))
    given: dict[str, Any] = {"mean": (0.5,), "std": (1.0,), "progress": False}
    train(Last(), images, masks, settings=settings, objective=Pairs(), **given)
    ((bright, marked),) = pairs
    assert torch.equal(bright, marked)
    assert 0 < int(marked[:, 0, 3].sum()) < 16  # some are flipped
    settings = amc.TrainingSettings(epochs=1, batch_size=16, augment=("flip", "crop"))
    with pytest.raises(ConfigError, match=r"augment may hold flip alone.*got \['flip', 'crop'\]"):
        train(Last(), images, masks, settings=settings, objective=Pairs(), **given)
