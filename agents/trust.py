"""What was learned on some networks about the estimated errors of all: what carries over.

Several small actors (an ensemble; Lakshminarayanan et al. 2017) see every layer of a network as
`envs.trust` describes it and say how far its estimated errors are to be trusted. Where they do not
agree they do not know, and the estimates stay as they are: of a mean action a with variance v
between the actors, a^2 / (a^2 + v) is left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import linear

from agents.episode import checked_reward
from agents.policy import check_strengths
from agents.trial import Trial
from agents.weights import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    check_constants,
    read_weights,
    shapes_of,
    weights_id,
)
from amc.errors import PolicyError
from amc.recovery.errors import LayerErrors
from amc.utils.documents import OBJECT, Kind, is_count, shown
from amc.utils.files import read_document, write_tensors, write_text
from envs.knapsack import knapsack_strategy
from envs.trust import REACH, TRUST_FEATURES, TRUST_PARTS, Trust

if TYPE_CHECKING:
    from envs.compression import CompressionEnv

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32]
Layers = tuple[tuple[Tensor, Tensor], ...]
"""Weight (out, in) and bias (out,) of every layer of an actor, float32."""

FORMAT = "amc-policy"
FORMAT_VERSION = 3  # 3: corrections of estimated errors; 2 and before: `agents.policy.Policy`
SHIPPED, NO_PRIOR = "shipped", "none"
SHIPPED_FOLDER = Path(__file__).parent / SHIPPED
STRENGTHS = (1.0, 0.5, 0.0)  # at which it is tried on a network: 0 is the knapsack's own strategy
_LARGEST = 64  # actors, and layers of one

_CONSTANTS = {
    "corrects": list(TRUST_PARTS),
    "reach": REACH,
    "activation": "relu",
    "output": "tanh",
}


@dataclass(frozen=True, eq=False)
class TrustPolicy:
    """An ensemble of actors: a layer's observation -> ReLU layers -> tanh -> its action.

    Attributes:
        actors: The layers of each, of the same sizes.
        observation_names: What each number of an observation means, in order.
        origin: How it was made, for people: networks, budgets, devices, commit, command.
    """

    actors: tuple[Layers, ...]
    observation_names: tuple[str, ...] = tuple(TRUST_FEATURES)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layer_sizes(self) -> list[int]:
        """Numbers of units of an actor, from the observation to the action."""
        return [len(self.observation_names), *(len(bias) for _, bias in self.actors[0])]

    def opinions(self, observations: Array) -> Array:
        """What every actor would do, shape (actors, layers, 4).

        Args:
            observations: Of every layer of a network, shape (layers, features).
        """
        seen = torch.as_tensor(observations, dtype=torch.float32)
        return np.stack([_run(actor, seen) for actor in self.actors])

    def act(self, observations: Array) -> FloatArray:
        """The action for every layer, shape (layers, 4), each in [-1, 1]."""
        opinions = self.opinions(observations).astype(np.float64)
        mean, variance = opinions.mean(0), opinions.var(0)
        agreed: FloatArray = mean**3 / np.maximum(mean**2 + variance, 1e-12)
        return agreed

    def correct(self, trust: Trust) -> LayerErrors:
        """The estimated errors of a network, as this policy corrects them."""
        return trust.corrected(self.act(trust.observed(self.observation_names)))

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths to try on another network."""
        return STRENGTHS

    @property
    def observed(self) -> str:
        """What the environment that it walks is to observe: it sees layers, and needs nothing."""
        return "plain"

    def check_strengths(self, strengths: Sequence[float]) -> None:
        """Check at how much of its strength the policy is to be tried.

        Raises:
            PolicyError: Not different numbers in [0, 1], or no number.
        """
        check_strengths(strengths)

    def check_features(self) -> None:
        """Check that there is a feature for everything that the policy observes: `load` did."""

    def walk(self, env: CompressionEnv, strength: float = 1.0, index: int = 1) -> Trial:
        """The knapsack's strategy by the corrected errors: one evaluation.

        Args:
            strength: Factor of the corrections, as logarithms: 0 leaves the errors as estimated.
            index: Number of the evaluation, kept in the trial.

        Raises:
            ConfigError: The environment knows no errors.
        """
        trust = Trust(env.costs, env.check_informed("a policy that corrects estimates"))
        action = strength * self.act(trust.observed(self.observation_names))
        strategy = knapsack_strategy(env.costs, trust.corrected(action))
        evaluation, reward = env.evaluate(strategy)
        return Trial(index, strategy, evaluation, checked_reward(reward, index, evaluation))

    # -- files --------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        tensors = self._tensors()
        description = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "observation_names": list(self.observation_names),
            **_CONSTANTS,
            "actors": len(self.actors),
            "layer_sizes": self.layer_sizes,
            "weights": weights_id(tensors),
            "origin": dict(self.origin),
        }
        write_tensors(folder / WEIGHTS_FILE, tensors, {"format": FORMAT})
        write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrustPolicy:
        """Read a policy that :meth:`save` wrote; nothing in it can run code.

        Raises:
            PolicyError: A file is missing or unreadable, of another version, or the two do not
                fit each other; or the policy sees features that this amc does not know.
        """
        path = folder / DESCRIPTION_FILE
        description = _read_description(path)
        sizes, actors = description["layer_sizes"], description["actors"]
        shapes: dict[str, tuple[int, ...]] = {}
        for actor in range(actors):
            shapes |= shapes_of(str(actor), sizes)
        tensors = read_weights(folder, shapes, description["weights"])
        return cls(
            tuple(
                tuple(
                    (tensors[f"{actor}.{layer}.weight"], tensors[f"{actor}.{layer}.bias"])
                    for layer in range(len(sizes) - 1)
                )
                for actor in range(actors)
            ),
            tuple(description["observation_names"]),
            description["origin"],
        )

    @property
    def id(self) -> str:
        """Changes with anything that it computes."""
        return weights_id(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{place}.{i}.{part}": tensor
            for place, actor in enumerate(self.actors)
            for i, layer in enumerate(actor)
            for part, tensor in zip(("weight", "bias"), layer, strict=True)
        }


def folder_of(policy: str) -> Path:
    """Where a policy is: the one that comes with amc by its name, any other by its folder."""
    return SHIPPED_FOLDER if policy == SHIPPED else Path(policy).expanduser()


def prior_of(name: str) -> TrustPolicy | None:
    """What a search believes before it evaluates anything: "shipped", "none", or of a folder.

    Raises:
        PolicyError: The folder holds no policy that corrects estimates.
    """
    return None if name == NO_PRIOR else TrustPolicy.load(folder_of(name))


def _run(actor: Layers, seen: Tensor) -> Array:
    *hidden, (weight, bias) = actor
    for hidden_weight, hidden_bias in hidden:
        seen = linear(seen, hidden_weight, hidden_bias).relu()
    action: Array = linear(seen, weight, bias).tanh().numpy()
    return action


def _is_names(value: Any) -> bool:
    texts = isinstance(value, list) and all(isinstance(name, str) and name for name in value)
    return texts and bool(value) and len(set(value)) == len(value)


def _is_small_count(value: Any) -> bool:
    return is_count(value) and value <= _LARGEST


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and 2 <= len(value) <= _LARGEST and all(map(is_count, value))


_FIELDS: dict[str, Kind] = {
    "observation_names": (_is_names, "a list of different names"),
    "actors": (_is_small_count, f"a whole number from 1 to {_LARGEST}"),
    "layer_sizes": (_is_sizes, f"a list of 2 to {_LARGEST} sizes of at least 1"),
    "weights": (lambda value: isinstance(value, str) and bool(value), "the weights' identifier"),
    "origin": OBJECT,
}


def _read_description(path: Path) -> dict[str, Any]:
    advice = "Use the amc that wrote it, copy both files again, or train again."
    document = read_document(
        path, "Policy description", FORMAT, FORMAT_VERSION, _FIELDS, PolicyError, advice
    )
    check_constants(path, document, _CONSTANTS)
    names, sizes = document["observation_names"], document["layer_sizes"]
    unknown = [name for name in names if name not in TRUST_FEATURES]
    if unknown:
        raise PolicyError(
            f"{path}: the policy sees features that this amc does not know: "
            f"{', '.join(map(shown, unknown))}. {advice}"
        )
    if (sizes[0], sizes[-1]) != (len(names), len(TRUST_PARTS)):
        raise PolicyError(
            f"{path}: 'layer_sizes' must go from {len(names)} (observation_names) to "
            f"{len(TRUST_PARTS)} (corrects), got {shown(sizes)}."
        )
    return document
