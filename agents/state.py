"""What an agent is between two episodes, and where that is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from agents.trial import Trial
from amc.errors import AmcError, ArtifactError
from amc.utils.documents import OBJECT, Kind, check_fields


def _misfit(said: str) -> AmcError:
    return ArtifactError(f"The agent's state {said}.")


@dataclass(frozen=True)
class AgentState:
    """All that the next episode depends on, in a form that holds no code.

    Attributes:
        tensors: Weights, moments of optimizers, replay, the torch stream.
        numbers: What JSON can hold: positions, counts, baselines, states of numpy generators.
        misfit: The error of a state that another agent left: names where it was read from.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    misfit: Callable[[str], AmcError] = _misfit

    def part(self, name: str) -> AgentState:
        """The state of a part: what is named "part/..." in this one."""
        prefix = f"{name}/"
        tensors = {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }
        return AgentState(tensors, self.object(name), self.misfit)

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """A tensor of the same type and shape as another one.

        Raises:
            AmcError: There is none, or it holds NaN or infinity.
        """
        found = self.tensors.get(name)
        if found is None or (found.dtype, found.shape) != (like.dtype, like.shape):
            have = "missing" if found is None else f"{found.dtype} of {tuple(found.shape)}"
            wanted = f"{like.dtype} of {tuple(like.shape)}"
            raise self.misfit(f"does not fit this agent: {name} must be {wanted}, it is {have}")
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise self.misfit(f"is damaged: {name} holds values that are not finite")
        return found

    def number(self, name: str, kind: Kind) -> Any:
        """A number, or what else of JSON is of the kind.

        Raises:
            AmcError: There is none.
        """
        check_fields(self.numbers, {name: kind}, self.misfit)
        return self.numbers[name]

    def object(self, name: str) -> Mapping[str, Any]:
        """Numbers by name.

        Raises:
            AmcError: There are none.
        """
        found: Mapping[str, Any] = self.number(name, OBJECT)
        return found


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


def restore_generator(rng: np.random.Generator, state: AgentState, name: str) -> None:
    """Put a generator back where `generator_state` found it, under this name.

    Raises:
        AmcError: There is no state of such a generator.
    """
    try:
        rng.bit_generator.state = dict(state.object(name))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as cause:
        raise state.misfit(f"is damaged: {name} is no state of a generator ({cause!r})") from cause
