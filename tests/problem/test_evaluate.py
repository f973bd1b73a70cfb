import math

import pytest
import torch
from torch import nn

from amc.data import Split
from amc.errors import EvaluationError
from amc.problem.evaluate import BATCH, Evaluator


class Answers(nn.Module):
    """Gives each image, a single number, the scores of the row that the number names."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows))

    def forward(self, x):
        return self.rows[x.flatten().long()]


def split_of(labels):
    """Images 0, 1, 2, ... as single float pixels, which are taken as they are."""
    labels = torch.tensor(labels)
    return Split(torch.arange(float(len(labels))).view(-1, 1, 1, 1), labels)


def evaluator(labels, reference=None):
    return Evaluator(split_of(labels), (0.0,), (1.0,), reference)


ONE, TWO = [math.log(3), 0.0], [0.0, math.log(7)]  # 3/4 for class 0; 7/8 for class 1


def test_accuracy_and_loss_by_hand():
    found = evaluator([0, 0, 1])(Answers([ONE, TWO, TWO]))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(-(math.log(3 / 4) + math.log(1 / 8) + math.log(7 / 8)) / 3)
    assert found.seconds > 0
    assert list(found.scores) == ["accuracy", "loss"]  # there is nothing to agree with


def test_agreement_is_minus_the_divergence_from_the_reference():
    measure = evaluator([0, 0], Answers([ONE, ONE]))
    divergence = 3 / 4 * math.log((3 / 4) / (1 / 8)) + 1 / 4 * math.log((1 / 4) / (7 / 8))
    assert measure(Answers([ONE, TWO])).agreement == pytest.approx(-divergence / 2)
    assert measure(Answers([ONE, ONE])).agreement == 0.0


def test_images_of_all_batches_count():
    labels = [0] * (2 * BATCH) + [1]
    found = evaluator(labels)(Answers([ONE] * len(labels)))
    assert found.accuracy == 2 * BATCH / (2 * BATCH + 1)
    assert len(evaluator(labels)) == len(labels)


def test_pixels_are_normalised():
    images = torch.full((2, 1, 1, 1), 255, dtype=torch.uint8)
    measure = Evaluator(Split(images, torch.tensor([1, 1])), (0.5,), (0.25,))  # to (1 - 0.5) / 0.25
    assert measure(Answers([ONE, ONE, TWO])).accuracy == 1.0


def test_network_is_evaluated_in_evaluation_mode():
    network = nn.Sequential(Answers([ONE, TWO]), nn.Dropout(0.99)).train()
    assert evaluator([0, 1])(network).accuracy == 1.0


def test_network_that_works_in_place_does_not_change_the_images():
    class InPlace(Answers):
        def forward(self, x):
            scores = super().forward(x)
            x.fill_(1.0)
            return scores

    measure = evaluator([0, 1])
    assert [measure(InPlace([ONE, TWO])).accuracy for _ in range(2)] == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_counted(bad):
    with pytest.raises(
        EvaluationError, match=r"NaN or infinite scores for 1 of 3 images.*data.mean"
    ):
        evaluator([0, 1, 1])(Answers([ONE, [0.0, bad], TWO]))


def test_reference_must_give_finite_scores():
    with pytest.raises(EvaluationError, match="for 2 of 2 images"):
        evaluator([0, 1], Answers([[math.nan, 0.0]] * 2))


def test_too_few_classes_are_named():
    with pytest.raises(
        EvaluationError, match="they have class 2, and the network scores 2 classes"
    ):
        evaluator([0, 2])(Answers([ONE, TWO]))


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda x: x, r"a tensor of shape \(2, 1, 1, 1\)"),
        (lambda x: x.flatten(), r"a tensor of shape \(2,\)"),
        (lambda x: x[:1].flatten(1), r"a tensor of shape \(1, 1\)"),
        (lambda x: (x, x), r"2 tensors \(0 \(2, 1, 1, 1\), 1 \(2, 1, 1, 1\)\)"),
    ],
)
def test_output_must_be_one_row_of_scores_for_each_image(function, returned):
    class Returns(nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(EvaluationError, match=rf"returned {returned} for 2 images; expected"):
        evaluator([0, 1])(Returns())


def test_network_in_bfloat16_is_given_its_type_and_judged_in_float():
    class Typed(Answers):
        def forward(self, x):
            assert x.dtype == torch.bfloat16
            return super().forward(x.float())

    network = Typed([ONE, TWO]).to(torch.bfloat16)
    found = evaluator([0, 1])(network, torch.bfloat16)
    three, seven = (math.exp(float(torch.tensor(math.log(k)).bfloat16())) for k in (3, 7))
    loss = -(math.log(three / (1 + three)) + math.log(seven / (1 + seven))) / 2
    assert found.loss == pytest.approx(loss, rel=1e-6)


def test_outputs_that_are_probabilities_are_read_as_such():
    logits, softmax = Answers([ONE, TWO, TWO]), Answers([[3 / 4, 1 / 4], [1 / 8, 7 / 8], [0, 1]])
    found = evaluator([0, 1, 1], logits)(softmax)
    assert found.accuracy == 1.0
    assert found.loss == pytest.approx(-(math.log(3 / 4) + math.log(7 / 8) + 0) / 3, abs=1e-6)
    # the first two agree; of the last, KL((1/8, 7/8) || (0, 1)), log 0 being that of float's least
    assert evaluator([0, 1], logits)(Answers([[3 / 4, 1 / 4], [1 / 8, 7 / 8]])).agreement == (
        pytest.approx(0, abs=1e-6)
    )


def test_without_labels_agreement_alone_is_found():
    images = torch.arange(2.0).view(-1, 1, 1, 1)
    measure = Evaluator(Split(images, None), (0.0,), (1.0,), Answers([ONE, ONE]))
    found = measure(Answers([ONE, TWO]))
    assert (found.accuracy, found.loss) == (None, None)
    assert list(found.scores) == ["agreement"]
    assert found.agreement < 0
    assert len(measure) == 2


def test_original_is_judged_as_if_it_were_evaluated_and_runs_once():
    network, images = Answers([ONE, TWO]), []
    network.register_forward_hook(lambda _, given, __: images.append(len(given[0])))
    measure = evaluator([0, 1], network)
    found = measure.original
    assert sum(images) == 2
    assert found.scores == measure(network).scores
    assert found.seconds > 0


def test_divergence_is_of_images_spread_over_the_split():
    measure = evaluator([0, 0, 0, 0], Answers([ONE, ONE, ONE, ONE]))
    first, second = Answers([TWO, ONE, ONE, ONE]), Answers([ONE, TWO, ONE, ONE])
    of_one = 3 / 4 * math.log((3 / 4) / (1 / 8)) + 1 / 4 * math.log((1 / 4) / (7 / 8))
    assert measure.divergence(first, torch.float32, 4) == pytest.approx(of_one / 4)
    assert measure.divergence(first, torch.float32, 2) == pytest.approx(of_one / 2)  # of 0 and 2
    assert measure.divergence(second, torch.float32, 3) == 0.0  # of 0 and 2 too
