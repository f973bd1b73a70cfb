import math

import pytest

from amc.cost.budget import METRICS, Budget
from amc.errors import BudgetError


def test_fraction_bounds_a_share_of_the_original():
    assert Budget("macs", fraction=0.25).bound(800.0) == 200.0


def test_absolute_bounds_in_the_unit_of_the_metric():
    budget = Budget("size_bytes", absolute=300)
    assert budget.bound(800.0) == 300
    assert budget.unit == "bytes"


def test_budget_reads_as_a_sentence():
    assert str(Budget("macs", fraction=0.5)) == "macs at most 0.5 of the original"
    assert str(Budget("energy_mj", absolute=1.5)) == "energy_mj at most 1.5 mJ"


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_unit(metric):
    assert Budget(metric, fraction=0.5).unit


def test_unknown_metric_names_the_nearest():
    with pytest.raises(
        BudgetError, match=r"latency_ms, .*got 'latency'. Did you mean 'latency_ms'"
    ):
        Budget("latency", fraction=0.5)
    with pytest.raises(BudgetError, match="got None"):
        Budget(None, fraction=0.5)


@pytest.mark.parametrize(
    "bounds", [{}, {"fraction": 0.5, "absolute": 3.0}, {"fraction": 0.5, "keep": 1.0}]
)
def test_exactly_one_bound_must_be_given(bounds):
    with pytest.raises(BudgetError, match=r"exactly one of budget.fraction .* budget.absolute"):
        Budget("latency_ms", **bounds)


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf, "0.5", True])
@pytest.mark.parametrize("kind", ["fraction", "absolute"])
def test_bound_must_be_a_positive_number(kind, bound):
    with pytest.raises(BudgetError, match="must be a positive number, got"):
        Budget("latency_ms", **{kind: bound})


def test_fraction_of_one_is_already_met():
    with pytest.raises(BudgetError, match=r"fraction=1.0 is already met.*below 1"):
        Budget("latency_ms", fraction=1.0)


@pytest.mark.parametrize("original", [5.0, 4.0])
def test_absolute_budget_that_the_original_meets_names_its_cost(original):
    with pytest.raises(BudgetError, match=f"already met: the original network costs {original:g}"):
        Budget("latency_ms", absolute=5.0).bound(original)


def test_number_is_a_fraction_of_the_latency():
    assert Budget.of(0.4) == Budget("latency_ms", fraction=0.4)


def test_mapping_holds_the_fields():
    assert Budget.of({"metric": "macs", "absolute": 9}) == Budget("macs", absolute=9)
    budget = Budget("bops", fraction=0.1)
    assert Budget.of(budget) is budget


def test_unknown_field_is_named():
    with pytest.raises(BudgetError, match=r"has metric, fraction, absolute, keep; got ratio"):
        Budget.of({"metric": "macs", "ratio": 0.5})


@pytest.mark.parametrize("keep", [-1.0, float("nan"), True, "much"])
def test_points_to_keep_must_be_a_number_from_0(keep):
    with pytest.raises(BudgetError, match=r"budget.keep must be a number from 0, got"):
        Budget("macs", keep=keep)


def test_budget_that_keeps_a_score_has_the_originals_cost_as_bound():
    budget = Budget("macs", keep=0.5)
    assert budget.bound(123.0) == 123.0
    assert str(budget) == "macs, the least that loses at most 0.5 of the score"
