"""Exploration: truncated normal noise around the actor's action, smaller every episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri


def truncated_normal(
    mean: npt.NDArray[np.float32],
    sigma: float,
    rng: np.random.Generator,
    low: float = -1.0,
    high: float = 1.0,
) -> npt.NDArray[np.float32]:
    """Draw from N(mean, sigma^2) conditioned on [low, high] (AMC, He et al. 2018, section 3.2).

    By inversion: with F the normal distribution function, F(x) is uniform between F(low) and
    F(high). Unlike clipping it puts no weight on the bounds themselves.

    Args:
        mean: Centres, each in [low, high], any shape.
        sigma: Standard deviation before truncation, above 0.

    Returns:
        One draw per mean, of its shape.
    """
    centre = mean.astype(np.float64)
    below, above = ndtr((low - centre) / sigma), ndtr((high - centre) / sigma)
    quantile = below + rng.random(centre.shape) * (above - below)
    draw: npt.NDArray[np.float64] = np.clip(centre + sigma * ndtri(quantile), low, high)
    return draw.astype(np.float32)


@dataclass(frozen=True)
class NoiseSchedule:
    """A standard deviation that shrinks by one factor per episode: initial * decay^k.

    Attributes:
        initial: Standard deviation in the first episode.
        decay: Factor from one episode to the next, in (0, 1].
    """

    initial: float
    decay: float

    def sigma(self, episode: int) -> float:
        """The standard deviation in ``episode``, counted from 0."""
        return float(self.initial * self.decay**episode)


def decay_to(final: float, episodes: int) -> float:
    """The decay with which the last of ``episodes`` has ``final`` times the first's noise.

    AMC decays by 0.95 over 700 episodes. With 70 the same factor would end at 3 % of the
    initial noise, with 20 at 38 %; so the factor follows the number of episodes instead:
    ``decay_to(0.05, 60)`` is 0.9505.
    """
    return float(final ** (1 / max(episodes - 1, 1)))
