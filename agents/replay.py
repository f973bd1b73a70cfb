"""Replay of whole episodes: the final reward counts for every step that led to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from agents.episode import Episode
from agents.state import AgentState, generator_state, restore_generator
from amc.utils.documents import NUMBER, SWITCH, WHOLE, or_null

_STORED = ("observations", "next_observations", "actions", "rewards", "dones")


class EpisodeReplay(ReplayBuffer):
    """A replay buffer that is filled by episodes and subtracts a moving reward baseline.

    A walk is rewarded once, at its end. As in AMC (He et al. 2018, section 3.2) every step of
    the episode is stored with that reward R, and a sampled batch gets R - b, where b is the
    exponential moving average of the mean rewards of the batches so far: it centres the
    values that the critic learns. For batch means 1 and 3 and ``baseline_decay=0.9``, b is 1,
    then 0.9 * 1 + 0.1 * 3 = 1.2.

    Args:
        seed: Of the generator that draws the batches.
        baseline_decay: Weight of the past in b, in [0, 1].
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        seed: int,
        baseline_decay: float,
    ) -> None:
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination=False,  # a walk is never truncated
        )
        self.baseline: float | None = None
        self._baseline_decay = baseline_decay
        self._rng = np.random.default_rng(seed)

    def add_episode(self, episode: Episode) -> None:
        """Store every transition of a finished walk with the walk's final reward."""
        reward = np.array([episode.trial.reward])
        for step in range(episode.steps):
            self.add(
                episode.observations[step],
                episode.observations[step + 1],
                episode.actions[step],
                reward,
                np.array([step == episode.steps - 1]),
                [{}],
            )

    def sample(self, batch_size: int, env: object = None) -> ReplayBufferSamples:
        """Draw transitions with replacement; rewards have shape (batch_size, 1)."""
        rows = self._rng.integers(0, self.size(), batch_size)
        return ReplayBufferSamples(
            observations=self.to_torch(self.observations[rows, 0]),
            actions=self.to_torch(self.actions[rows, 0]),
            next_observations=self.to_torch(self.next_observations[rows, 0]),
            dones=self.to_torch(self.dones[rows]),
            rewards=self.to_torch(self._centred(self.rewards[rows])),
        )

    def state(self) -> AgentState:
        """All transitions, where the next goes, the moving baseline and the random stream."""
        filled = slice(self.size())
        tensors = {name: torch.from_numpy(getattr(self, name)[filled].copy()) for name in _STORED}
        numbers = {
            "next": self.pos,
            "full": self.full,
            "baseline": self.baseline,
            "rng": generator_state(self._rng),
        }
        return AgentState(tensors, numbers)

    def restore(self, state: AgentState) -> None:
        """Make a replay of the same size what it was.

        Raises:
            AmcError: The state is of another replay.
        """
        position, full = state.number("next", WHOLE), state.number("full", SWITCH)
        filled = self.buffer_size if full else position
        if filled > self.buffer_size or (full and position >= self.buffer_size):
            raise state.misfit(
                f"does not fit this agent: its replay has {filled} transitions, at most "
                f"{self.buffer_size}"
            )
        for name in _STORED:
            kept = getattr(self, name)
            kept[:filled] = state.tensor(name, torch.from_numpy(kept[:filled])).numpy()
        self.pos, self.full = position, full
        self.baseline = state.number("baseline", or_null(NUMBER))
        restore_generator(self._rng, state, "rng")

    def _centred(self, rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        mean = float(rewards.mean())
        if self.baseline is None:
            self.baseline = mean
        self.baseline += (1 - self._baseline_decay) * (mean - self.baseline)
        return rewards - np.float32(self.baseline)
