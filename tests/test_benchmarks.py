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
