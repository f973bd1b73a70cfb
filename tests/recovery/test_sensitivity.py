"""Estimates from one backward pass, beside what can be worked out by hand or enumerated."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc.compress.verify import graph_of
from amc.errors import CalibrationError
from amc.recovery import sensitivity
from amc.recovery.sensitivity import LinearChange, divergences, output_sensitivities
from tests.graph.nets import SHAPE, CalledTwice, Sequence, conv

SMALL = (3, 4, 4)
PIXELS = 16  # of a SMALL image


def images(count: int, shape=SMALL) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


class TwoClasses(nn.Module):
    """Scores (a, -a) with a = mean over pixels of w . conv(x); the convolution gives 0.

    Both classes are equally likely, so whichever label is drawn the gradient of its
    log-likelihood is (1/2, -1/2) or the opposite: +-w / PIXELS at every pixel of a channel.
    """

    WEIGHT = (0.5, -2.0)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 2, 1), nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        w = torch.tensor(self.WEIGHT)
        self.linear.weight.data = torch.stack([w, -w])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean((2, 3)))


def pulled(change: Tensor):
    """A change of an output that is the same for every input."""
    return lambda layer, received: change.expand(len(received), *change.shape)


def kl(network, changed, batch) -> float:
    """Mean divergence of the changed network's probabilities, in nats."""
    with torch.no_grad():
        p, q = (functional.log_softmax(net(batch).double(), 1) for net in (network, changed))
    return float((p.exp() * (p - q)).sum(1).mean())


# -- by hand -------------------------------------------------------------------------------------


def test_sensitivities_of_two_equal_classes_by_hand():
    found = output_sensitivities(graph_of(TwoClasses(), SMALL), images(20))
    # 0.5 * (1/2)^2 for the scores; 0.5 * PIXELS * (w / PIXELS)^2 for a channel.
    torch.testing.assert_close(found["linear"], torch.full((2,), 1 / 8, dtype=torch.float64))
    by_hand = torch.tensor([w**2 / (2 * PIXELS) for w in TwoClasses.WEIGHT], dtype=torch.float64)
    torch.testing.assert_close(found["conv"], by_hand)


def test_sensitivities_of_a_network_that_ends_with_a_softmax_are_those_of_its_logits():
    class Probabilities(TwoClasses):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    found = output_sensitivities(graph_of(Probabilities(), SMALL), images(20))
    by_hand = torch.tensor([w**2 / (2 * PIXELS) for w in TwoClasses.WEIGHT], dtype=torch.float64)
    torch.testing.assert_close(found["conv"], by_hand)


def test_divergence_of_a_constant_change_by_hand():
    graph, change = graph_of(TwoClasses(), SMALL), torch.zeros(2, 4, 4)
    change[1] = 0.1  # moves the scores by -0.2 and 0.2: KL is log(cosh(0.2)), or 0.2^2 / 2
    (found,) = divergences(graph, images(20), {"conv": [(0, pulled(change))]}, 1)
    assert found == pytest.approx(0.2**2 / 2, rel=1e-5)
    assert found == pytest.approx(float(torch.tensor(0.2).cosh().log()), rel=0.01)


def test_errors_of_neighbours_cancel_or_pull_together():
    """Same energy, other signs: the diagonal of F cannot tell them apart."""
    graph = graph_of(TwoClasses(), SMALL)
    together, against = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    together[0], against[0, ::2], against[0, 1::2] = 0.1, 0.1, -0.1
    changes = {"conv": [(0, pulled(together)), (1, pulled(against))]}
    found = divergences(graph, images(8), changes, 2)
    assert found[0] == pytest.approx((0.5 * 0.1) ** 2 / 2, rel=1e-5)
    assert found[1] == pytest.approx(0, abs=1e-12)


def test_change_of_several_layers_adds_before_it_is_squared():
    graph, up = graph_of(TwoClasses(), SMALL), torch.zeros(2, 4, 4)
    up[1] = 0.1  # scores by (-0.2, 0.2), which the linear layer's own change takes back
    back = torch.tensor([0.2, -0.2])
    changes = {"conv": [(0, pulled(up)), (1, pulled(up))], "linear": [(1, pulled(back))]}
    found = divergences(graph, images(8), changes, 3)
    assert found[0] == pytest.approx(0.2**2 / 2, rel=1e-5)
    assert found[1] == pytest.approx(0, abs=1e-12)
    assert found[2] == 0  # no layer of this change was named


def test_sensitivities_of_softmax_scores_are_half_their_variance():
    """A drawn label's score varies by p (1 - p)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    image = images(1, (3, 2, 2))
    p = network(image).softmax(1)[0].double().detach()
    graph = graph_of(network, (3, 2, 2))
    found = output_sensitivities(graph, image.expand(20_000, -1, -1, -1))["1"]
    torch.testing.assert_close(found, p * (1 - p) / 2, rtol=0.03, atol=0)


# -- against enumeration and true divergences ----------------------------------------------------


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(
            conv(3, 4), nn.ReLU(), conv(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
        ).eval()
    network[5].weight.data *= 4
    return network


def test_sensitivities_are_those_of_all_labels_enumerated(network):
    batch = images(3)
    outputs = []
    hook = network[2].register_forward_hook(lambda m, a, out: outputs.append(out))
    scores = functional.log_softmax(network(batch), 1)
    hook.remove()
    fisher = torch.zeros(5, dtype=torch.float64)
    for label in range(3):
        (g,) = torch.autograd.grad(scores[:, label].sum(), outputs[0], retain_graph=True)
        likely = scores[:, label].exp().detach()[:, None]  # (images, 1)
        fisher += (likely * g.square().sum((2, 3))).double().mean(0)
    repeated = batch.repeat(3000, 1, 1, 1)
    found = output_sensitivities(graph_of(network, SMALL), repeated)["2"]
    torch.testing.assert_close(found, fisher / 2, rtol=0.05, atol=0)


@pytest.mark.parametrize("path", ["0", "2", "5"])
def test_divergence_of_a_small_change_of_weights_is_near_the_true_one(network, path):
    batch = images(3000)
    layer = network.get_submodule(path)
    generator = torch.Generator().manual_seed(2)
    delta = 0.01 * torch.randn(layer.weight.shape, generator=generator)

    def change(module, received):
        if path == "5":
            return functional.linear(received, delta)
        return functional.conv2d(received, delta, padding=1)

    (found,) = divergences(graph_of(network, SMALL), batch, {path: [(0, change)]}, 1)
    graph = graph_of(network, SMALL)
    layer.weight.data += delta
    true = kl(graph.plan.module, network, batch)
    assert true > 1e-5
    assert found == pytest.approx(true, rel=0.1)


def test_layer_called_twice_changes_at_both_calls():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CalledTwice().eval()
    network.last.weight.data *= 10
    batch = images(1500, SHAPE)
    delta = 0.005 * torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    graph = graph_of(network, SHAPE)
    changes = {
        "shared": [(0, lambda layer, received: functional.conv2d(received, delta, padding=1))]
    }
    (found,) = divergences(graph, batch, changes, 1)
    network.shared.weight.data += delta
    true = kl(graph.plan.module, network, batch)
    assert true > 1e-5
    assert found == pytest.approx(true, rel=0.1)


class Unrolled(CalledTwice):
    """The shared layer as two layers of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.again = conv(8, 8)
        self.again.load_state_dict(self.shared.state_dict())

    def body(self, x: Tensor) -> Tensor:
        return self.free(self.again(self.shared(x)))


def test_sensitivities_of_a_layer_called_twice_are_the_sum_of_both_calls():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twice = CalledTwice().eval()
    unrolled = Unrolled().eval()
    unrolled.load_state_dict(
        twice.state_dict()
        | {f"again.{name}": tensor for name, tensor in twice.shared.state_dict().items()}
    )
    batch = images(16, SHAPE)
    both = output_sensitivities(graph_of(unrolled, SHAPE), batch)
    found = output_sensitivities(graph_of(twice, SHAPE), batch)
    torch.testing.assert_close(found["shared"], both["shared"] + both["again"], rtol=1e-5, atol=0)


# -- networks that work in place -----------------------------------------------------------------


class Reader(nn.Module):
    """Reads its input, and then changes it for those who read it later."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=in_place)
        self.first, self.second, self.last = conv(3, 4), conv(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.relu(x))  # in place: on the image itself
        y = self.second(x)
        return self.last((y + self.relu(x)).mean((2, 3)) * 5)


def test_network_that_works_in_place_is_estimated_like_one_that_does_not():
    torch.manual_seed(0)
    plain, in_place = Reader(False).eval(), Reader(True).eval()
    in_place.load_state_dict(plain.state_dict())
    batch = images(40)
    before = batch.clone()
    delta = torch.full((4, 4, 3, 3), 0.05)
    changes = {
        "second": [(0, lambda layer, received: functional.conv2d(received, delta, padding=1))]
    }
    graphs = [graph_of(network, SMALL) for network in (plain, in_place)]
    weighed = [output_sensitivities(graph, batch) for graph in graphs]
    for path in ("first", "second", "last"):
        assert weighed[0][path].min() > 0
        torch.testing.assert_close(weighed[1][path], weighed[0][path])
    found = [divergences(graph, batch, changes, 1) for graph in graphs]
    assert found[0][0] > 0
    assert found[1] == pytest.approx(found[0])
    assert torch.equal(batch, before)


# -- what is left behind, and what goes wrong ----------------------------------------------------


def test_network_is_left_without_hooks_and_gradients(network):
    graph = graph_of(network, SMALL)
    output_sensitivities(graph, images(4))
    divergences(graph, images(4), {"2": [(0, lambda layer, received: 0 * layer(received))]}, 1)
    for module in graph.plan.module.modules():
        assert not module._forward_hooks
    for parameter in graph.plan.module.parameters():
        assert parameter.grad is None


def test_numbers_are_the_same_each_time(network):
    graph, batch = graph_of(network, SMALL), images(64)
    first = output_sensitivities(graph, batch)["0"]
    torch.rand(5)
    assert torch.equal(output_sensitivities(graph, batch)["0"], first)


def test_images_count_the_same_in_whatever_batches(monkeypatch):
    graph, batch = graph_of(TwoClasses(), SMALL), images(10)  # whose labels do not matter
    changes = {"linear": [(0, lambda layer, received: torch.ones(len(received), 2))]}
    scaled = {"conv": [(0, lambda layer, received: 0.1 * received[:, :2])]}
    weighed = output_sensitivities(graph, batch)
    whole = [divergences(graph, batch, c, 1)[0] for c in (changes, scaled)]
    monkeypatch.setattr(sensitivity, "PIXELS", 4 * PIXELS)  # batches of 4, 4 and 2
    parts = [divergences(graph, batch, c, 1)[0] for c in (changes, scaled)]
    assert whole[0] == pytest.approx(0, abs=1e-12)  # both scores by the same: no other softmax
    # By hand: each image's scores move by +-a, a = the mean of 0.1 x . w over its pixels.
    moved = (0.1 * batch[:, :2].mean((2, 3)) @ torch.tensor(TwoClasses.WEIGHT)).square().mean() / 2
    assert whole[1] == pytest.approx(float(moved), rel=1e-5)
    assert parts == pytest.approx(whole, abs=1e-9)
    for path, values in output_sensitivities(graph, batch).items():
        torch.testing.assert_close(values, weighed[path])


def test_layer_from_which_no_gradient_comes_back_does_not_matter():
    network = Sequence(nn.ReLU(), conv(8, 6), nn.ReLU(), features=6)
    network.last.weight.data.zero_()
    found = output_sensitivities(graph_of(network, SHAPE), images(8, SHAPE))
    assert found["middle.1"].tolist() == [0] * 6


class Root(nn.Module):
    """Finite everywhere; the gradient of a root at 0 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 4), nn.Linear(4, 3)
        nn.init.zeros_(self.first.weight[2])
        nn.init.zeros_(self.first.bias[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).abs().sqrt().mean((2, 3)))


NO_CHANGE = [(0, lambda layer, received: layer(received))]


def test_gradients_that_are_not_finite_are_named():
    torch.manual_seed(0)
    graph = graph_of(Root().eval(), SMALL)
    with pytest.raises(CalibrationError, match="Gradients at layer 'first' are not finite"):
        output_sensitivities(graph, images(8))
    with pytest.raises(CalibrationError, match="Gradients at layer 'first' are not finite"):
        divergences(graph, images(8), {"first": NO_CHANGE}, 1)


def test_outputs_that_are_not_finite_are_said(network):
    graph = graph_of(network, SMALL)
    graph.plan.module.get_submodule("5").bias.data[0] = torch.nan
    with pytest.raises(CalibrationError, match=r"outputs are not finite .* check its weights"):
        output_sensitivities(graph, images(8))
    with pytest.raises(CalibrationError, match="outputs are not finite"):
        divergences(graph, images(8), {"0": NO_CHANGE}, 1)


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 6, (3, 1), padding=(2, 0), dilation=(2, 1), groups=3, bias=False),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 4),  # a single position
    ],
)
def test_pull_of_a_changed_weight_is_that_of_the_change_of_its_output(first):
    torch.manual_seed(0)
    network = nn.Sequential(first, nn.Flatten(), nn.LazyLinear(3)).eval()
    network(images(1))
    draw = torch.Generator().manual_seed(1)
    change = LinearChange(
        torch.randn(first.weight.shape, generator=draw), torch.randn(len(first.weight))
    )
    plain = divergences(
        graph_of(network, SMALL),
        images(10),
        {"0": [(0, change), (1, lambda layer, received: change(layer, received))]},
        2,
    )
    assert plain[1] > 0
    assert plain[0] == pytest.approx(plain[1], rel=1e-4)
