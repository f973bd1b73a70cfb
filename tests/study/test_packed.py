"""Searches whose budget is the size of a packed file."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import amc
from amc.errors import ConfigError
from amc.problem import local
from amc.study import jury
from amc.utils.measure import Timing
from docs.examples.weight_sparsity import Sparsity, toy_data, toy_network

SMALL: dict[str, Any] = {
    "search_images": 20,
    "final_candidates": 1,
    "store": False,
    "evaluations": 4,
    "agent": {"name": "ddpg", "hidden": [16], "warmup": 2},
    "space": amc.SearchSpace(weight_bits=(3, 8), decisions=(Sparsity(),)),
}
BUDGET = amc.Budget("packed_bytes", fraction=0.4)


@pytest.fixture(scope="module")
def data() -> amc.DataSet:
    return toy_data()


@pytest.fixture(scope="module")
def network(data: amc.DataSet) -> nn.Module:
    return toy_network(data)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = [Timing(4.0, 0.1), Timing(3.0, 0.1), Timing(2.0, 0.1)]
    monkeypatch.setattr(local, "measure_latency", lambda *_, **__: timed)


def test_the_file_is_measured_beside_its_prediction(
    network: nn.Module, data: amc.DataSet, tmp_path: Any
) -> None:
    result = amc.search(network, data, None, BUDGET, **SMALL)
    original, _, best = result.comparison
    path = tmp_path / "it.amcp"
    amc.save_packed(result.network, network, (1, 8, 8), path)
    assert best.packed_bytes is not None
    assert original.packed_bytes is not None
    assert abs(path.stat().st_size - best.packed_bytes) <= 3  # the name in the header
    assert original.packed_bytes == round(result.task.costs.original)
    (note,) = (note for note in result.notes if note.startswith("The packed file takes"))
    assert f"{best.packed_bytes:,} bytes" in note
    assert "predicted were" in note
    predicted = result.task.costs.cost_of(result.strategy)
    assert predicted <= result.task.costs.bound
    assert best.packed_bytes == pytest.approx(predicted, rel=0.05)  # of a thousand bytes


def test_a_file_that_misses_the_budget_is_said_to(
    network: nn.Module, data: amc.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(task: Any, compressed: object) -> int:
        return round(1.25 * task.costs.bound)

    monkeypatch.setattr(jury.CompressionTask, "file_bytes", too_large)
    result = amc.search(network, data, None, BUDGET, **SMALL)
    (note,) = (note for note in result.notes if "missed by the file" in note)
    assert "(1.250 of it). The same search with search.reaim=2 aims lower" in note
    even = result.comparison[1].packed_bytes
    said = f"What is called uniform does not meet the budget: its file takes {even:,} bytes"
    assert any(note.startswith(said) for note in result.notes) or even == best_of(result)


def best_of(result: amc.SearchResult) -> int | None:
    return result.comparison[-1].packed_bytes


def test_a_search_aims_lower_until_the_file_fits(
    network: nn.Module, data: amc.DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are a quarter larger than predicted: predictions are held to four fifths."""

    def larger(task: Any, compressed: Any) -> int:
        return round(1.25 * task.strategy_costs(compressed.strategy)["packed_bytes"])

    monkeypatch.setattr(jury.CompressionTask, "file_bytes", larger)
    result = amc.search(network, data, None, BUDGET, reaim=2, **SMALL)
    assert any("as the packed file missed the budget of" in note for note in result.notes)
    best = result.comparison[-1].packed_bytes
    assert best is not None
    assert best <= result.task.costs.bound


def test_aiming_lower_needs_something_that_is_measured(
    network: nn.Module, data: amc.DataSet
) -> None:
    with pytest.raises(ConfigError, match="or budget=packed_bytes, whose files are written"):
        amc.search(network, data, None, amc.Budget("macs", fraction=0.4), reaim=1, **SMALL)
