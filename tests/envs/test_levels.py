import pytest

from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.strategy import FLOAT
from envs.levels import level_at, nearest_level


@pytest.fixture
def costs(tiny_graph):
    """Of conv1's 4 channels 2 or 4 may be kept, of conv2's 6 2, 4 or 6."""
    choices = choices_for(tiny_graph, (FLOAT,), channel_step=2, min_preserve_ratio=0.2)
    return CostModel(tiny_graph, choices, Budget("macs", fraction=0.5))


def kept(graph, **counts):
    """Channels kept of every group; all, where nothing else is said."""
    return [counts.get(group.name, group.size) for group in graph.groups]


def test_level_is_that_of_the_channels_kept(costs):
    graph = costs.graph
    assert [level_at(costs, kept(graph, conv1=count), 0) for count in (2, 4)] == [0, 1]
    assert [level_at(costs, kept(graph, conv2=count), 1) for count in (2, 4, 6)] == [0, 1, 2]


def test_nearest_level_is_the_lower_of_two_as_near(costs):
    graph = costs.graph
    counts = (1, 2, 3, 4, 5, 6)
    found = [nearest_level(costs, kept(graph, conv2=count), 1) for count in counts]
    assert found == [0, 0, 0, 1, 1, 2]
    for count, level in ((2, 0), (4, 1)):
        whole = kept(graph, conv1=count)
        assert nearest_level(costs, whole, 0) == level_at(costs, whole, 0) == level


def test_layer_that_decides_nothing_has_one_level(costs):
    whole = kept(costs.graph)
    for layer in (2, 3):  # conv3 follows conv2, and the classes are frozen
        assert level_at(costs, whole, layer) == nearest_level(costs, whole, layer) == 0
