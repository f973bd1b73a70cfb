from collections import Counter

import pytest
import torch

from amc.layers import kind_of
from amc.recovery.reference import gather_reference
from tests.conftest import TINY_SHAPE

IMAGES = torch.randn(70, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))  # two batches
POSITIONS = 3


@pytest.fixture
def given(tiny_graph):
    """Layer path -> what it gave, each time that it ran."""
    found = {path: [] for path in tiny_graph.plan.layers}
    for path, outputs in found.items():
        module = tiny_graph.plan.module.get_submodule(path)
        module.register_forward_hook(lambda _, __, y, outputs=outputs: outputs.append(y.clone()))
    return found


def test_every_layer_runs_once_for_each_batch(tiny_graph, given):
    gather_reference(tiny_graph, IMAGES, positions=POSITIONS)
    runs = Counter({path: len(outputs) for path, outputs in given.items()})
    assert set(runs.values()) == {1 + 2}  # one image to find how many are affordable, two batches


def test_targets_are_what_the_layers_gave_and_what_that_was_added_to(tiny_graph, given):
    reference = gather_reference(tiny_graph, IMAGES, positions=POSITIONS)
    assert list(reference.streams) == ["conv3"]
    for path, targets in reference.targets.items():
        layer = tiny_graph.plan.module.get_submodule(path)
        for batch, target in enumerate(targets):
            rows = kind_of(layer).output_rows(
                given[path][1 + batch], reference.generator(batch), POSITIONS
            )
            assert torch.equal(target.output, rows)
            assert (target.stream is not None) == (path == "conv3")
    norm = tiny_graph.plan.module.get_submodule("bn2")
    conv3 = tiny_graph.plan.module.get_submodule("conv3")
    for batch, target in enumerate(reference.targets["conv3"]):
        stream = torch.relu(norm(given["conv2"][1 + batch]))
        rows = kind_of(conv3).output_rows(stream, reference.generator(batch), POSITIONS)
        assert torch.equal(target.stream, rows.detach())
