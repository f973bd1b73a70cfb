"""One thread of BLAS, and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from amc.recovery import products
from amc.utils import blas


def _threads() -> set[int]:
    return {int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("one", [blas.one_thread, blas.one_thread_of_known])
def test_blas_has_one_thread_inside_and_what_it_had_afterwards(
    one: Callable[[], AbstractContextManager[object]],
) -> None:
    with threadpool_limits(2, user_api="blas"):
        before = _threads()
        assert before, "NumPy without a BLAS that can be limited"
        with one():
            assert _threads() == {1}
        assert _threads() == before


def test_moments_are_multiplied_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    stack = np.stack

    def noted(parts: list[np.ndarray]) -> np.ndarray:
        seen.append(_threads())
        return stack(parts)

    monkeypatch.setattr(products.np, "stack", noted)
    with threadpool_limits(2, user_api="blas"):
        products.second_moments(torch.ones(1, 4, 3))
    assert seen == [{1}]
