from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

import benchmarks


def test_every_benchmark_can_be_the_first_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        for name in [n for n in sys.modules if n.partition(".")[0] == "benchmarks"]:
            monkeypatch.delitem(sys.modules, name)
        importlib.import_module(module.name)
