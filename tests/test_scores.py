import math

import pytest
import torch
from torch.nn import functional

from amc.scores import are_probabilities, as_logits

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
