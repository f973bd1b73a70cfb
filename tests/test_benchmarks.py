from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

import benchmarks
from benchmarks import latency


def test_every_benchmark_can_be_the_first_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        for name in [n for n in sys.modules if n.partition(".")[0] == "benchmarks"]:
            monkeypatch.delitem(sys.modules, name)
        importlib.import_module(module.name)


def test_predictions_are_ranked_beside_a_second_measurement() -> None:
    predicted, measured, again = [9, 1, 2, 3, 4], [9, 2, 2.5, 2.4, 5], [9, 2, 2.4, 2.5, 5]
    columns = zip(predicted, measured, again, strict=True)
    alike = {"device": "d", "network": "n", "batch": 1, "channel step": 8, "table_s": 1}
    rows: list[dict[str, object]] = [
        alike | {"predicted_ms": p, "measured_ms": m, "again_ms": a} for p, m, a in columns
    ]
    found = latency.summary(rows)
    # Two neighbours of four are exchanged: 1 - 6 * (1 + 1) / (4 * 15).
    assert found["rank correlation"] == found["rank of both measurements"] == "0.800"
    assert found["median error"] == "22.5%"  # of 50, 20, 25 and 20 %; the first is the original
    once = [{key: value for key, value in row.items() if key != "again_ms"} for row in rows]
    assert "rank of both measurements" not in latency.summary(once)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((), "latency-mixed-b1-resnet56"),
        (("--networks", "resnet20:32", "vgg:32"), "latency-mixed-b1-resnet20-vgg"),
        (("--networks", "timm/deit_tiny:96"), "latency-mixed-b1-timm_deit_tiny"),
        (("--device", "openvino_cpu", "--batch", "4"), "latency-openvino_cpu-mixed-b4-resnet56"),
        (("--bits", "float"), "latency-float-b1-resnet56"),
    ],
)
def test_latencies_of_other_networks_are_kept_beside(given: tuple[str, ...], name: str) -> None:
    assert latency.file_name(latency.arguments(given)) == name
