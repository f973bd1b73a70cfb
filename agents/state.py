"""What an agent is between two episodes, and where that is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from agents.trial import Trial


@dataclass(frozen=True)
class AgentState:
    """All that the next episode depends on, in a form that holds no code.

    Attributes:
        tensors: Weights, moments of optimizers, replay, the torch stream.
        numbers: What JSON can hold: positions, counts, baselines, states of numpy generators.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


class Checkpoints(Protocol):
    """Keeps a search's past, so that a killed one goes on where it was."""

    def load(self) -> tuple[list[Trial], AgentState | None]:
        """Trials of the past, and the state after the last of them; none, if there is no past."""

    def note(self, trial: Trial, state: Callable[[], AgentState]) -> None:
        """Called after every trial; ``state`` gives the agent as it is after it."""


class Forgetful:
    """No past, and none is kept."""

    def load(self) -> tuple[list[Trial], AgentState | None]:
        return [], None

    def note(self, trial: Trial, state: Callable[[], AgentState]) -> None:
        pass


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of a numpy generator, as JSON can hold it."""
    return dict(rng.bit_generator.state)


def restore_generator(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put a generator back where `generator_state` found it."""
    rng.bit_generator.state = dict(state)
