import numpy as np
import pytest
import torch
from torch import nn

from amc.compress.forms import give_form
from amc.compress.quantization import quantize_layer, quantize_weight
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.decisions.forms import Zeros
from amc.errors import CalibrationError
from amc.layers.kind import POSITIONS_PER_IMAGE
from amc.recovery import reference
from amc.recovery.reference import gather_reference
from amc.recovery.sequential import MAX_COLUMNS, refit_layers
from amc.strategy import Bits
from tests.conftest import TINY_SHAPE, randomise_norms
from tests.graph.nets import CalledTwice

IMAGES = torch.randn(128, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_norms(build()).eval()


def cut(graph, kept):
    """A smaller network that keeps the given positions of the named groups, and its mask."""
    index = {group.name: group.index for group in graph.groups}
    keep = keep_mask(graph, {index[name]: np.array(p) for name, p in kept.items()})
    return remove_channels(graph.plan, keep), keep


def repair(graph, smaller, keep, images, *, max_columns=MAX_COLUMNS, **options):
    """Refit all layers of a smaller network to what the original gives on the images."""
    found = gather_reference(graph, images, **{"positions": POSITIONS_PER_IMAGE, **options})
    refit_layers(graph, smaller, keep, found, max_columns=max_columns)


def repaired(graph, kept, images=IMAGES, **options):
    smaller, keep = cut(graph, kept)
    repair(graph, smaller, keep, images, **options)
    return smaller


@torch.no_grad()
def error_of(network, original, images=IMAGES):
    return float((network(images) - original(images)).square().mean())


def test_whole_network_stays_what_it_is(tiny_net, tiny_graph):
    network = repaired(tiny_graph, {})
    assert error_of(network, tiny_net) < 1e-8


def test_repair_is_the_least_squares_solution():
    """Linear layers only: what is left is what no weight could do."""
    network = seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5))
    )
    graph = graph_of(network, TINY_SHAPE)
    images = torch.randn(4096, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
    smaller = repaired(graph, {"1": [0, 2, 3, 6]}, images)
    with torch.no_grad():
        hidden = torch.relu(network[1](images.flatten(1)))[:, [0, 2, 3, 6]]
        design = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
        expected = network(images).double()
        best = torch.linalg.lstsq(design, expected).solution
        least = float((design @ best - expected).square().mean())
    assert error_of(smaller, network, images) == pytest.approx(least, rel=0.01)


def test_convolutions_see_what_was_repaired_before_them(tiny_net, tiny_graph):
    kept = {"conv1": [0, 2], "conv2": [0, 1, 3, 5]}
    sliced, _ = cut(tiny_graph, kept)
    network = repaired(tiny_graph, kept)
    assert error_of(network, tiny_net) < 0.5 * error_of(sliced, tiny_net)


class Block(nn.Module):
    """A stream that a normalised branch is added to; the branch sees all of the input."""

    def __init__(self, affine=True):
        super().__init__()
        self.start = nn.Conv2d(3, 6, 1)
        self.middle = nn.Conv2d(6, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6, affine=affine)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        return self.last(self.stream(x).mean((2, 3)))

    def stream(self, x):
        x = self.start(x)
        return x + self.norm(self.branch(torch.relu(self.middle(x))))


def stream_error(network, smaller, kept):
    """Squared error of the sum of stream and branch, in the channels that are left."""
    sums = []
    for module in (network, smaller):
        with torch.no_grad():
            start = module.start(IMAGES)
            sums.append(start + module.norm(module.branch(torch.relu(module.middle(start)))))
    return float((sums[0][:, kept] - sums[1]).square().mean())


def test_branch_repairs_what_the_stream_lost():
    network = seeded(Block)
    graph = graph_of(network, TINY_SHAPE)
    sequential_start = network.start.weight.clone()
    # Quantizing the stream's layer breaks the stream itself.
    smaller, keep = cut(graph, {})
    smaller.start = quantize_layer(smaller.start, Bits(1, 32), None)
    repair(graph, smaller, keep, IMAGES)
    with_stream = stream_error(network, smaller, range(6))
    smaller, keep = cut(graph, {})
    smaller.start = quantize_layer(smaller.start, Bits(1, 32), None)
    repair(graph, smaller, keep, IMAGES, stream_correction=False)
    assert with_stream < 0.9 * stream_error(network, smaller, range(6))
    assert torch.equal(network.start.weight, sequential_start)


@pytest.mark.parametrize("affine", [True, False])
def test_norms_without_factors_are_repaired_too(affine):
    network = nn.Module.eval(_with_statistics(Block(affine)))
    graph = graph_of(network, TINY_SHAPE)
    kept = {"middle": [0, 1, 2, 3, 5]}
    sliced, _ = cut(graph, kept)
    assert error_of(repaired(graph, kept), network) < error_of(sliced, network)


def _with_statistics(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3, generator=generator)
    network.norm.running_var.uniform_(0.5, 2, generator=generator)
    network.norm.running_mean.normal_(0, 0.3, generator=generator)
    return network


class LinearBlock(nn.Module):
    """A stream of six features of three numbers, a branch with BN over features."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(3, 6)
        self.middle = nn.Linear(6, 12)
        self.branch = nn.Linear(12, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        x = self.start(x.mean((2, 3)))
        x = x + self.norm(self.branch(torch.relu(self.middle(x))))
        return self.last(x)


def test_norm_is_undone_for_the_correction():
    """The sum comes as close as any weight of the branch could bring it."""
    network = seeded(LinearBlock)
    network.norm.running_var.fill_(16.0)  # the branch is scaled by about a quarter
    graph = graph_of(network, TINY_SHAPE)
    smaller, keep = cut(graph, {})
    smaller.start = quantize_layer(smaller.start, Bits(1, 32), None)
    repair(graph, smaller, keep, IMAGES)
    with torch.no_grad():
        stream = network.start(IMAGES.mean((2, 3)))
        expected = stream + network.norm(network.branch(torch.relu(network.middle(stream))))
        stream = smaller.start(IMAGES.mean((2, 3)))
        hidden = torch.relu(smaller.middle(stream))
        found = stream + smaller.norm(smaller.branch(hidden))
        design = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
        wanted = (expected - stream).double()
        best = design @ torch.linalg.lstsq(design, wanted).solution
    least = float((best - wanted).square().mean())
    assert least < float((found - expected).square().mean()) < 2 * least  # not undone: 150 times


def test_channel_that_its_norm_switches_off_repairs_nothing():
    network = seeded(Block)
    network.norm.weight.data[2] = 0.0
    graph = graph_of(network, TINY_SHAPE)
    smaller, keep = cut(graph, {})
    smaller.start = quantize_layer(smaller.start, Bits(1, 32), None)
    repair(graph, smaller, keep, IMAGES)
    assert torch.isfinite(smaller.branch.weight).all()
    assert smaller.branch.weight.abs().max() < 10 * network.branch.weight.abs().max()


def test_layers_called_twice_keep_their_weights():
    network = seeded(CalledTwice)
    graph = graph_of(network, TINY_SHAPE)
    smaller = repaired(graph, {"free": [0, 1, 2, 3]})
    assert torch.equal(smaller.shared.weight, network.shared.weight)
    assert torch.equal(smaller.shared.bias, network.shared.bias)
    assert not torch.equal(smaller.last.weight, network.last.weight[:, :4])


def depthwise() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(216, 5)
        )
    )


def test_of_a_depthwise_layer_only_the_mean_is_made_right():
    """What its channels receive has changed, and its own weights have not."""
    network = depthwise()
    graph = graph_of(network, TINY_SHAPE)
    smaller, keep = cut(graph, {"0": [0, 2, 3, 5]})
    smaller.get_submodule("1").bias.data += 1
    repair(graph, smaller, keep, IMAGES, positions=10_000)
    assert torch.equal(smaller.get_submodule("1").weight, network[1].weight[[0, 2, 3, 5]])
    with torch.no_grad():
        given = smaller.get_submodule("1")(smaller.get_submodule("0")(IMAGES)).mean((0, 2, 3))
        wanted = network[1](network[0](IMAGES)).mean((0, 2, 3))[[0, 2, 3, 5]]
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


def test_mean_of_a_depthwise_layer_is_made_right_by_the_normalisation_after_it():
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 3, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(216, 5),
        )
    )
    graph = graph_of(network, TINY_SHAPE)
    smaller, keep = cut(graph, {})
    smaller.get_submodule("0").weight.data *= 1.01  # its refit undoes that but for the ridge
    smaller.get_submodule("2").running_mean += 1
    repair(graph, smaller, keep, IMAGES, positions=10_000)
    with torch.no_grad():
        torch.testing.assert_close(
            smaller(IMAGES).mean(0), network(IMAGES).mean(0), rtol=1e-3, atol=1e-3
        )


def test_depthwise_layers_of_few_bits_are_refitted_channel_by_channel():
    """To a broken input: each channel's taps are the least-squares solution of its own."""
    network = depthwise()
    graph = graph_of(network, TINY_SHAPE)
    smaller, keep = cut(graph, {})
    smaller.get_submodule("0").weight.data *= 0.5
    repair(graph, smaller, keep, IMAGES, max_columns=9, positions=10_000)
    first = smaller.get_submodule("0")  # 3 columns: repaired to what it was
    torch.testing.assert_close(first.weight, network[0].weight, rtol=1e-2, atol=1e-3)
    smaller, keep = cut(graph, {})
    layer = smaller.get_submodule("1")
    layer.weight.data *= 0.5
    smaller._modules["1"] = quantize_layer(layer, Bits(7, 32), None)
    repair(graph, smaller, keep, IMAGES, positions=10_000)
    largest = network[1].weight.abs().amax((1, 2, 3), keepdim=True)
    off = (smaller.get_submodule("1").weight - network[1].weight).abs() / largest
    assert off.max() < 2 / 63  # of 63 steps, two


def test_depthwise_layer_with_one_channel_left_can_be_repaired():
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(216, 5)
        )
    )
    graph = graph_of(network, TINY_SHAPE)
    sliced, _ = cut(graph, {"0": [2]})
    assert error_of(repaired(graph, {"0": [2]}), network) < error_of(sliced, network)


def test_wide_layers_are_refitted_within_what_some_of_their_rows_span(tiny_net, tiny_graph):
    kept = {"conv1": [0, 1, 2]}
    sliced, _ = cut(tiny_graph, kept)
    smaller = repaired(tiny_graph, kept, max_columns=9)  # conv2 has 27 columns, conv3 54
    whole = repaired(tiny_graph, kept)
    for layer in ("conv2", "conv3"):
        change = smaller.get_submodule(layer).weight - sliced.get_submodule(layer).weight
        assert 0 < torch.linalg.matrix_rank(change.flatten(1), rtol=1e-4) <= 9
    lost, narrow, wide = (error_of(net, tiny_net) for net in (sliced, smaller, whole))
    assert wide < narrow < lost


def test_wide_layer_whose_inputs_span_little_is_repaired_as_a_narrow_one_is(tiny_graph):
    """Inputs that differ in few directions are all that a layer sees."""
    kept = {"conv1": [0, 1, 2]}
    whole = repaired(tiny_graph, kept, positions=10_000)
    span = repaired(tiny_graph, kept, max_columns=26, positions=10_000)  # one less than conv2 has
    torch.testing.assert_close(span.conv2.weight, whole.conv2.weight, rtol=0.05, atol=0.02)


def test_wide_layer_is_repaired_on_its_grid(tiny_graph):
    smaller, keep = cut(tiny_graph, {"conv1": [0, 1, 3]})
    smaller.conv3 = quantize_layer(smaller.conv3, Bits(4, 8), (0.2, 3))
    repair(tiny_graph, smaller, keep, IMAGES, max_columns=9)
    layer = smaller.conv3
    on_grid = quantize_weight(layer.weight, layer.weight_scale, 4)
    torch.testing.assert_close(layer.weight.data, on_grid, rtol=1e-6, atol=1e-7)


def test_quantized_layers_are_repaired_on_their_grid(tiny_net, tiny_graph):
    smaller, keep = cut(tiny_graph, {"conv1": [0, 1, 3]})
    bits = {"conv2": Bits(2, 4), "conv3": Bits(32, 4), "linear": Bits(1, 32)}
    for path, pair in bits.items():
        setattr(smaller, path, quantize_layer(smaller.get_submodule(path), pair, (0.2, 3)))
    before = error_of(smaller, tiny_net)
    repair(tiny_graph, smaller, keep, IMAGES)
    assert error_of(smaller, tiny_net) < before
    for path in ("conv2", "linear"):
        layer = smaller.get_submodule(path)
        on_grid = quantize_weight(layer.weight, layer.weight_scale, bits[path].weight)
        torch.testing.assert_close(layer.weight.data, on_grid, rtol=1e-6, atol=1e-7)


def test_layer_that_receives_what_is_not_finite_is_named(tiny_graph):
    smaller, keep = cut(tiny_graph, {"conv1": [0, 2]})
    found = gather_reference(tiny_graph, IMAGES, positions=POSITIONS_PER_IMAGE)
    smaller.get_submodule("bn1").weight.data.fill_(float("inf"))
    with pytest.raises(CalibrationError, match=r"the inputs of layer 'conv2' has no solution"):
        refit_layers(tiny_graph, smaller, keep, found)


def test_fewer_images_are_used_where_activations_are_large(tiny_graph, monkeypatch):
    kept = {"conv1": [0, 1]}
    fewest = reference.FEWEST_POSITIONS  # positions go before images do
    few = repaired(tiny_graph, kept, IMAGES[: reference.BATCH], positions=fewest)
    monkeypatch.setattr(reference, "MEMORY_BYTES", 1)
    capped = repaired(tiny_graph, kept)
    assert torch.equal(capped.conv2.weight, few.conv2.weight)


def test_weights_are_the_same_each_time(tiny_graph):
    one, two = (repaired(tiny_graph, {"conv1": [0, 1]}) for _ in range(2))
    assert torch.equal(one.conv2.weight, two.conv2.weight)
    assert torch.equal(one.linear.bias, two.linear.bias)


class Clipped(Block):
    """A branch whose sum with its stream passes a ReLU."""

    def stream(self, x):
        return torch.relu(super().stream(x))


@pytest.mark.parametrize("affine", [True, False])
def test_rectified_repair_comes_closer_behind_the_relu(affine):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _with_statistics(Clipped(affine)).eval()
    network.start.bias.data -= 1.0  # most sums are below zero
    graph = graph_of(network, TINY_SHAPE)

    def error(**options):
        smaller, keep = cut(graph, {"middle": [0, 2, 3, 5]})
        repair(graph, smaller, keep, IMAGES, **options)
        with torch.no_grad():
            x = smaller.start(IMAGES)
            x = x + smaller.norm(smaller.branch(torch.relu(smaller.middle(x))))
            return float((torch.relu(x) - network.stream(IMAGES)).square().mean())

    assert error() < 0.985 * error(rectified=False)


def test_rectified_repair_leaves_a_channel_that_its_norm_switches_off():
    network = seeded(Clipped)
    network.norm.weight.data[2] = 0.0
    graph = graph_of(network, TINY_SHAPE)
    smaller = repaired(graph, {"middle": [0, 2, 3, 5]})
    assert torch.isfinite(smaller.branch.weight).all()
    assert smaller.branch.weight.abs().max() < 10 * network.branch.weight.abs().max()


def test_whole_network_with_relus_stays_what_it_is():
    network = seeded(Clipped)
    graph = graph_of(network, TINY_SHAPE)
    assert error_of(repaired(graph, {}), network) < 1e-8


def test_layers_that_are_not_judged_take_the_first_ridge(tiny_graph):
    found = gather_reference(tiny_graph, IMAGES, positions=POSITIONS_PER_IMAGE)
    smaller, keep = cut(tiny_graph, {"conv1": [0, 1]})
    refits = refit_layers(tiny_graph, smaller, keep, found, ridges=(0.5, 1e-3), judged={"conv2"})
    by_path = {refit.path: refit for refit in refits}
    assert by_path["conv2"].ridge == 1e-3
    assert {by_path[path].ridge for path in ("conv1", "conv3", "linear")} == {0.5}
    assert by_path["conv3"].refused == 0


def test_weight_that_is_left_beside_a_zero_looks_through_the_relu():
    network = nn.Sequential(nn.Conv2d(2, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2)).eval()
    network[0].weight.data = torch.tensor([1.0, -0.9]).view(1, 2, 1, 1)
    network[0].bias.data.zero_()
    # Of half of the images 1 to 4 is wanted, of the others -3.7: without its second input the
    # layer cannot give both, but after the ReLU -1 will do for -3.7.
    above, below = torch.linspace(1, 4, 64), torch.full((64,), -1.0)
    first, second = torch.cat([above, below]), torch.cat([0 * above, -3 * below])
    images = torch.stack([first, second], 1).view(-1, 2, 1, 1)
    graph = graph_of(network, (2, 1, 1))
    smaller, keep = cut(graph, {})
    layer = smaller.get_submodule("0")
    give_form(layer, Zeros(0.5))
    repair(graph, smaller, keep, images)
    weight = layer.weight.flatten().tolist()
    assert weight == pytest.approx([1.0, 0.0], abs=0.05)
