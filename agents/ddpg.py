"""DDPG as AMC uses it (He et al. 2018, section 3.2; Lillicrap et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3 import DDPG

from agents.noise import NoiseSchedule, decay_to
from agents.off_policy import OffPolicySearcher, SeparateRates, linear_layers
from agents.settings import is_number, number, setting


class _DDPG(SeparateRates, DDPG):
    """Deep deterministic policy gradient with one learning rate per network."""


def _is_decay(value: Any) -> bool:
    return value is None or (is_number(value) and 0 < value <= 1)


@dataclass(frozen=True)
class DDPGSearcher(OffPolicySearcher):
    """A deterministic actor, explored by truncated normal noise that shrinks every episode.

    Attributes:
        noise_initial: Standard deviation in the first learning episode, on actions in [-1, 1].
            AMC's 0.5 is on ratios in [0, 1], of a walk without advice: 1.0 here.
        noise_final: What is left of it in the last episode, as a fraction.
        noise_decay: Factor per episode; None takes the one that ends at ``noise_final``.
    """

    name: ClassVar[str] = "ddpg"

    noise_initial: float = number(0.3, 0, above=True)
    noise_final: float = number(0.05, 0, 1, above=True)
    noise_decay: float | None = setting(None, _is_decay, "a factor above 0, at most 1, or null")

    def build(self, arguments: Mapping[str, Any]) -> SeparateRates:
        return _DDPG(**arguments)

    def actor_layers(self, actor: Any) -> list[torch.nn.Linear]:
        return linear_layers(actor.mu)

    def noise(self, episodes: int) -> NoiseSchedule:
        decay = self.noise_decay or decay_to(self.noise_final, episodes)
        return NoiseSchedule(self.noise_initial, decay)
