"""Actions to learn a correction of estimates from: around what is known, in directions that carry.

Noise of a layer's own tells its errors apart from its neighbours'; noise that is a random linear
function of what the actor sees moves all layers of a kind together, as a policy will.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from envs.trust import TRUST_PARTS

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32]

SPREAD = 0.1  # added to a feature's standard deviation: of those that hardly vary


def explored(
    observations: Array, around: FloatArray, noise: float, rng: np.random.Generator
) -> FloatArray:
    """Actions of all layers, shape (layers, 4), each in [-1, 1].

    Args:
        observations: Of every layer, shape (layers, features).
        around: Actions that the noise is added to, shape (layers, 4).
        noise: Standard deviation of each of the two kinds of noise.
    """
    seen = observations.astype(np.float64)
    seen = (seen - seen.mean(0)) / (seen.std(0) + SPREAD)
    features = seen.shape[1]
    alike = seen @ rng.normal(0, 1, (features, len(TRUST_PARTS))) / np.sqrt(features)
    own = rng.normal(0, 1, (len(seen), len(TRUST_PARTS)))
    actions: FloatArray = np.clip(around + noise * (own + alike), -1, 1)
    return actions
