"""SAC (Haarnoja et al. 2018): a random actor that is rewarded for its entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3 import SAC

from agents.off_policy import OffPolicySearcher, SeparateRates, linear_layers
from agents.settings import is_number, number, setting


class _SAC(SeparateRates, SAC):
    """Soft actor-critic with one learning rate per optimizer."""


def _is_entropy(value: Any) -> bool:
    return value == "auto" or (is_number(value) and value >= 0)


@dataclass(frozen=True)
class SACSearcher(OffPolicySearcher):
    """Explores by the actor's own randomness, without noise from outside.

    Attributes:
        entropy: Weight of the entropy against the reward; "auto" learns it.
        entropy_lr: Learning rate of that weight.
    """

    name: ClassVar[str] = "sac"

    entropy: float | str = setting("auto", _is_entropy, "'auto' or a number of at least 0")
    entropy_lr: float = number(3e-4, 0, 1, above=True)

    def build(self, arguments: Mapping[str, Any]) -> SeparateRates:
        return _SAC(**arguments, ent_coef=self.entropy)

    def actor_layers(self, actor: Any) -> list[torch.nn.Linear]:
        return [*linear_layers(actor.latent_pi), *linear_layers(actor.mu)]

    @property
    def rates(self) -> tuple[float, ...]:
        return self.actor_lr, self.critic_lr, self.entropy_lr
