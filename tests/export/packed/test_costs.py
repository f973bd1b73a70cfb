from __future__ import annotations

import pytest

from amc.cost.prices import operator_prices
from amc.export.packed import costs as costs_module
from amc.export.packed.costs import PackedCosts
from amc.export.packed.network import pack
from amc.strategy import IDENTITY, Bits, Option, Strategy
from tests.export.packed.nets import compressed

FOUR = Option(Bits(4, 32))
LAYERS = ("conv1", "conv2", "fc")


def uniform(option: Option, ratio: float = 1.0) -> Strategy:
    return Strategy({"conv1": ratio, "conv2": ratio}, dict.fromkeys(LAYERS, option.bits))


def test_the_original_costs_its_file() -> None:
    network, graph = compressed(IDENTITY)
    costs = PackedCosts(graph, [FOUR], "small")
    predicted = sum(operator_prices(graph, IDENTITY, "packed_bytes", None, costs))
    assert predicted == pytest.approx(len(pack(network, graph, "small").content))


def test_rounded_weights_cost_their_file_within_a_hundredth() -> None:
    network, graph = compressed(uniform(FOUR))
    costs = PackedCosts(graph, [FOUR], "small")
    predicted = sum(operator_prices(graph, uniform(FOUR), "packed_bytes", None, costs))
    assert predicted == pytest.approx(len(pack(network, graph, "small").content), rel=0.01)


def test_what_repairs_add_is_learned_from_whole_files() -> None:
    """Weights of 6 bits in the place of 4 are the repair here: half as much again."""
    _, graph = compressed(IDENTITY)
    costs = PackedCosts(graph, [FOUR], "small")
    six = Option(Bits(6, 32))

    def repaired(strategy: Strategy) -> object:
        return compressed(Strategy(strategy.preserve_ratio, uniform(six).bits))[0]

    before = costs.of(1, FOUR)
    costs.correct(repaired, [FOUR])  # type: ignore[arg-type]
    after = costs.of(1, FOUR)
    assert 1.25 * before.weight < after.weight < 1.75 * before.weight
    assert after.output == before.output
    assert after.once == pytest.approx(before.once, abs=5)  # longer numbers in the header
    real = len(pack(compressed(uniform(six))[0], graph, "small").content)
    predicted = sum(operator_prices(graph, uniform(FOUR), "packed_bytes", None, costs))
    assert predicted == pytest.approx(real, rel=0.01)


def test_every_layer_is_corrected_by_what_became_of_it() -> None:
    """The second layer alone has 6 bits in the place of 4 here."""
    _, graph = compressed(IDENTITY)
    costs = PackedCosts(graph, [FOUR], "small")

    def repaired(strategy: Strategy) -> object:
        bits = {**strategy.bits, "conv2": Bits(6, 32)}
        return compressed(Strategy(strategy.preserve_ratio, bits))[0]

    before = [costs.of(index, FOUR).weight for index in range(3)]
    costs.correct(repaired, [FOUR])  # type: ignore[arg-type]
    first, second, third = (costs.of(index, FOUR).weight / before[index] for index in range(3))
    assert (first, third) == pytest.approx((1, 1), abs=0.01)
    assert 1.25 < second < 1.75
    real = len(pack(repaired(uniform(FOUR)), graph, "small").content)  # type: ignore[arg-type]
    predicted = sum(operator_prices(graph, uniform(FOUR), "packed_bytes", None, costs))
    assert predicted == pytest.approx(real, rel=0.001)


def test_a_channel_has_a_factor_and_a_shift_and_no_scale_where_it_is_normalised() -> None:
    _, graph = compressed(IDENTITY)
    costs = PackedCosts(graph, [FOUR], "small")
    assert [costs.of(index, FOUR).output for index in range(3)] == [4, 4, 4]  # fc: bias and scale
    assert [costs.of(index, Option()).output for index in range(3)] == [4, 4, 2]


def test_wide_layer_of_which_some_rows_are_coded_costs_nothing_below_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few rows take more each than all of them: the whole file sets that right."""
    monkeypatch.setattr(costs_module, "MOST_WEIGHTS", 64)
    network, graph = compressed(IDENTITY)
    costs = PackedCosts(graph, [FOUR], "small")
    prices = operator_prices(graph, IDENTITY, "packed_bytes", None, costs)
    assert sum(prices) == pytest.approx(len(pack(network, graph, "small").content))
    assert min(prices) >= 0
    assert costs.of(0, FOUR).once >= 0
