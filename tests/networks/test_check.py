from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from amc.errors import NetworkError
from amc.networks import check_network

SHAPE = (3, 8, 8)


def classifier(outputs: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, outputs)
    )


def test_check_leaves_modes_and_statistics_as_they_were():
    network = classifier().train()
    network[2].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert check_network(network, SHAPE).shape[1] == 5
    assert [module.training for module in network] == [True, True, False, True, True]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_images_of_another_size_are_named():
    with pytest.raises(NetworkError, match=r"does not accept images of 3x9x9.*data\.image_size"):
        check_network(classifier(), (3, 9, 9))


def test_output_that_is_no_list_of_scores_is_refused():
    with pytest.raises(
        NetworkError,
        match=r"of shape \(2, 4, 6, 6\) for two.*=classification expects a tensor \(images, cl",
    ):
        check_network(nn.Conv2d(3, 4, 3), SHAPE)


def test_several_outputs_are_refused_where_the_objective_takes_one():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    said = (
        r"Two returns 2 tensors \(0 \(2, 3, 8, 8\), 1 \(2, 3, 8, 8\)\) for two images of 3x8x8; "
        r"objective=classification expects .*objective=auto finds one, .*network\.outputs=\[0\]"
    )
    with pytest.raises(NetworkError, match=said):
        check_network(Two(), SHAPE)
    assert list(check_network(Two(), SHAPE, None)) == ["0", "1"]


def test_output_that_is_not_finite_is_refused():
    network = classifier()
    nn.init.constant_(network[4].bias, float("nan"))
    with pytest.raises(NetworkError, match="returns NaN or infinity for images of 3x8x8"):
        check_network(network, SHAPE)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda x: SimpleNamespace(logits=x), r"returned SimpleNamespace"),
        (lambda x: Outputs(x.argmax(1), None), r"returned Outputs of 2"),
        (lambda x: x.argmax(1), r"returned a tensor of shape \(2, 8, 8\) and type torch.int64"),
        (lambda x: None, r"Other: a network must return a tensor .*this one returned NoneType"),
        (
            lambda x: {"scores": x, "anchors": torch.ones(9, 4)},
            r"output 'anchors' has shape \(9, 4\) for 2 images; .*network\.outputs=\[scores\]",
        ),
    ],
    ids=["object", "decisions", "integers", "nothing", "anchors"],
)
def test_output_that_cannot_be_compared_is_refused(output, said):
    class Other(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(NetworkError, match=said):
        check_network(Other(), SHAPE)


class Outputs(NamedTuple):
    logits: torch.Tensor
    aux: None


def test_network_of_two_inputs_is_told_so_and_not_to_change_the_image_size():
    class Two(nn.Module):
        def forward(self, x, mask, scale=1.0):
            return x

    with pytest.raises(NetworkError, match=r"Two takes 2 inputs \(x, mask\); .*of images") as error:
        check_network(Two(), SHAPE)
    assert "image_size" not in str(error.value)


def test_network_without_inputs_is_told_so():
    class Constant(nn.Module):
        def forward(self):
            return torch.zeros(2, 4)

    with pytest.raises(NetworkError, match="Constant takes 0 inputs"):
        check_network(Constant(), SHAPE)


def test_mistake_in_the_forward_is_not_taken_for_a_wrong_image_size():
    class Misspelt(nn.Module):
        def forward(self, x):
            return self.convolution(x)

    said = r"Misspelt fails on images of 3x8x8 .*AttributeError: .*convolution.*Correct its forward"
    with pytest.raises(NetworkError, match=said):
        check_network(Misspelt(), SHAPE)


def test_network_of_another_type_that_is_not_converted_is_told_to_be():
    with pytest.raises(NetworkError, match=r"has weights of float64 .*network\.float\(\)"):
        check_network(classifier().double(), SHAPE)
