"""One thread and one random stream for the agent, whatever runs around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from agents.state import AgentState


class AgentCompute:
    """Runs the agent's own torch code apart from the evaluation's.

    An actor of 300 units is slower on many threads than on one, while the evaluation between
    two updates wants all cores; changing the number takes about a microsecond. The agent also
    draws from a random stream of its own, so that neither what was drawn before the search nor
    what the evaluation draws changes a trial.
    """

    def __init__(self, seed: int) -> None:
        self._seconds = 0.0
        self._state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def running(self) -> Iterator[None]:
        """One thread and the agent's random stream inside; what was there before afterwards."""
        start, threads, outer = time.perf_counter(), torch.get_num_threads(), torch.get_rng_state()
        torch.set_num_threads(1)
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(outer)
            torch.set_num_threads(threads)
            self._seconds += time.perf_counter() - start

    @property
    def stream(self) -> Tensor:
        """Where the agent's random stream is; set it to go on from there."""
        return self._state.clone()

    @stream.setter
    def stream(self, state: Tensor) -> None:
        self._state = state.clone()

    def take_seconds(self) -> float:
        """Wall-clock time spent inside since this was last asked."""
        taken, self._seconds = self._seconds, 0.0
        return taken


def restore_stream(compute: AgentCompute, state: AgentState) -> None:
    """Go on with the random stream where a state has it.

    Raises:
        AmcError: It has none.
    """
    stream = state.tensor("stream", compute.stream)
    try:
        torch.Generator().set_state(stream)
    except RuntimeError as cause:
        raise state.misfit(f"is damaged: stream is no state of a generator ({cause})") from cause
    compute.stream = stream
