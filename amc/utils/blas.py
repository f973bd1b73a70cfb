"""NumPy's and SciPy's BLAS, kept to one thread.

Their threads go on spinning when they have nothing left to do, on the cores that PyTorch's threads
need: with two of each on two cores, a candidate of ResNet-56 took 6.8 s to build and evaluate; with
one of BLAS, 2.3 s.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController, threadpool_limits


def one_thread() -> threadpool_limits:
    """One thread from now on, for all libraries that are loaded; as a context: until its end."""
    return threadpool_limits(1, user_api="blas")


def one_thread_of_known() -> AbstractContextManager[object]:
    """`one_thread`, for the libraries that were loaded at the first call: in microseconds."""
    limits: AbstractContextManager[object] = _known().limit(limits=1)
    return limits


@cache
def _known() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
