import math

import pytest
import torch
from torch.nn import functional

from amc.objectives.classification import Classification, are_probabilities, as_logits

SURE, UNSURE = [0.9, 0.1], [0.25, 0.75]


def test_rows_that_are_not_negative_and_sum_to_one_are_probabilities():
    assert are_probabilities(torch.tensor([SURE, UNSURE]))
    assert are_probabilities(torch.rand(9, 1000).softmax(1).bfloat16())


@pytest.mark.parametrize(
    "rows",
    [
        [SURE, [0.5, 0.6]],
        [SURE, [1.5, -0.5]],
        [[1.0], [1.0]],  # of one class: nothing is known
        [SURE, [math.nan, 0.5]],
        [SURE, [math.inf, 0.0]],
    ],
)
def test_other_rows_are_scores_and_stay_what_they_are(rows):
    outputs = torch.tensor(rows)
    assert not are_probabilities(outputs)
    assert as_logits(outputs) is outputs


def test_probabilities_become_their_logarithms_and_zero_a_finite_one():
    found = as_logits(torch.tensor([SURE, [1.0, 0.0]]))
    torch.testing.assert_close(found[0], torch.tensor([math.log(0.9), math.log(0.1)]))
    assert found.isfinite().all()
    torch.testing.assert_close(found.log_softmax(1).exp()[1], torch.tensor([1.0, 0.0]))


def test_softmax_and_logits_give_the_same_log_probabilities():
    logits = 8 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    softmax = functional.log_softmax(as_logits(logits.softmax(1)), 1)
    torch.testing.assert_close(softmax, functional.log_softmax(logits, 1), atol=1e-4, rtol=1e-4)


def test_what_is_known_is_not_looked_for():
    row = torch.tensor([[2.0, 3.0]])
    torch.testing.assert_close(as_logits(row, probabilities=True), row.log())
    assert as_logits(torch.tensor([SURE]), probabilities=False).tolist() == [pytest.approx(SURE)]


def test_outputs_are_one_row_of_scores_for_each_image():
    objective = Classification()
    assert objective.fits(torch.zeros(3, 7), 3)
    assert not objective.fits(torch.zeros(3, 7), 2)
    assert not objective.fits(torch.zeros(3, 7, 1), 3)


@pytest.mark.parametrize(
    ("targets", "classes", "why"),
    [
        (torch.tensor([0, 4]), None, ""),
        (torch.tensor([0, 1]), 5, ""),
        (torch.tensor([0, 5]), None, "they have class 5, and the network scores 5 classes"),
        (torch.tensor([0, 1]), 2, "they are of 2 classes, and the network has 5 outputs"),
        (torch.zeros(2, 8, 8).long(), 0, "int64 of shape (2, 8, 8), not one class for each image"),
        (torch.zeros(2), 5, "torch.float32 of shape (2,), not one class for each image"),
    ],
)
def test_targets_that_say_nothing_of_the_outputs_are_told(targets, classes, why):
    found = Classification().mismatch(torch.zeros(2, 5), targets, classes)
    assert (why in found) if why else found == ""


def test_original_that_is_hardly_better_than_chance_is_doubted():
    objective = Classification().fitted(torch.zeros(3, 5))  # chance: 20 %; well: 44 %
    assert objective.doubt({"accuracy": 0.44}) == objective.doubt({"agreement": 0.0}) == ""
    said = objective.doubt({"accuracy": 0.43})
    assert "right on only 43.00 %" in said
    assert "5 classes on 20.00 %" in said


def test_what_outputs_are_is_noted_and_remembered():
    assert Classification().fitted(torch.tensor([SURE])) == Classification(True, 2)
    assert "their logarithms are taken" in Classification(True).notes[0]
    assert Classification(False).notes == ()


def test_divergence_of_every_image_by_hand():
    reference = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # 3/4, 1/4; 1/2, 1/2
    found = Classification().divergence(torch.zeros(2, 2), reference)
    expected = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert found.tolist() == pytest.approx([expected, 0])


def test_distillation_loss_is_t_squared_times_the_divergence_at_t():
    # At T = 2, logits of ln 9 are odds of 3: the teacher says (3/4, 1/4), the student (1/2, 1/2).
    teacher = torch.tensor([[math.log(9), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(Classification().teacher_loss(torch.zeros(1, 2), teacher, 2.0)) == pytest.approx(
        expected
    )


def test_distillation_loss_is_the_mean_over_images():
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    one = Classification().teacher_loss(student, teacher, 4.0)
    torch.testing.assert_close(
        Classification().teacher_loss(student.repeat(5, 1), teacher.repeat(5, 1), 4.0), one
    )
