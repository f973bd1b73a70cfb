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
    assert check_network(network, SHAPE) == 5
    assert [module.training for module in network] == [True, True, False, True, True]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_images_of_another_size_are_named():
    with pytest.raises(NetworkError, match=r"does not accept images of 3x9x9.*data\.image_size"):
        check_network(classifier(), (3, 9, 9))


def test_output_that_is_no_list_of_scores_is_refused():
    with pytest.raises(NetworkError, match=r"\(2, classes\) for two images.*got \(2, 4, 6, 6\)"):
        check_network(nn.Conv2d(3, 4, 3), SHAPE)


def test_output_that_is_no_tensor_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(NetworkError, match=r"must return one tensor.*returned tuple"):
        check_network(Two(), SHAPE)


def test_output_that_is_not_finite_is_refused():
    network = classifier()
    nn.init.constant_(network[4].bias, float("nan"))
    with pytest.raises(NetworkError, match="returns NaN or infinity for images of 3x8x8"):
        check_network(network, SHAPE)
