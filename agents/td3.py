"""TD3 (Fujimoto et al. 2018): DDPG with two critics, smoothed targets and a delayed actor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stable_baselines3 import TD3

from agents.ddpg import DDPGSearcher
from agents.off_policy import SeparateRates
from agents.settings import count, number


class _TD3(SeparateRates, TD3):
    """Twin delayed DDPG with one learning rate per network."""


@dataclass(frozen=True)
class TD3Searcher(DDPGSearcher):
    """DDPG's exploration and replay under TD3's updates.

    Attributes:
        policy_delay: Updates of the critics per update of the actor.
        target_noise: Standard deviation of the noise on the target actor's actions.
        target_noise_clip: Its largest absolute value.
    """

    name: ClassVar[str] = "td3"

    policy_delay: int = count(2)
    target_noise: float = number(0.2, 0)
    target_noise_clip: float = number(0.5, 0)

    def build(self, arguments: Mapping[str, Any]) -> SeparateRates:
        return _TD3(
            **arguments,
            policy_delay=self.policy_delay,
            target_policy_noise=self.target_noise,
            target_noise_clip=self.target_noise_clip,
        )
