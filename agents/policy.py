"""The learned policy as it is shared: safetensors and JSON, without the library that trained it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from agents.episode import Array, anchored, run_episode
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
from amc.utils.documents import Kind, is_count, shown
from amc.utils.files import read_document, write_tensors, write_text
from envs.observation import FEATURES

if TYPE_CHECKING:
    from envs.compression import CompressionEnv

FORMAT = "amc-policy"
FORMAT_VERSION = 2  # 2: anchor
ACTION_NAMES = ("preserve_ratio", "weight_bits", "activation_bits")  # then other decisions
ANCHORS = ("program", "none")
STRENGTHS = (1.0, 0.5, 0.25, 0.0)  # at which an anchored policy is tried on another network

# What this version computes.
_CONSTANTS = {
    "action_range": [-1, 1],
    "activation": "relu",
    "output": "tanh",
}


@dataclass(frozen=True, eq=False)
class Policy:
    """An actor: observation -> ReLU layers -> tanh -> action.

    Attributes:
        algorithm: Name of the searcher that trained it.
        observation_names: What each number of an observation means, in order.
        layers: Weight (out, in) and bias (out,) of every layer, float32.
        anchor: What its actions depart from: "program", or "none".
        action_names: What each number of an action decides: the ratio first.
    """

    algorithm: str
    observation_names: tuple[str, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    anchor: str = "none"
    action_names: tuple[str, ...] = ACTION_NAMES

    @classmethod
    def from_modules(
        cls,
        algorithm: str,
        observation_names: Sequence[str],
        modules: Sequence[torch.nn.Linear],
        anchor: str = "none",
        action_names: Sequence[str] = ACTION_NAMES,
    ) -> Policy:
        """Copy the weights of an actor's linear layers, first to last."""
        layers = tuple(
            (module.weight.detach().clone(), module.bias.detach().clone()) for module in modules
        )
        return cls(algorithm, tuple(observation_names), layers, anchor, tuple(action_names))

    @property
    def layer_sizes(self) -> list[int]:
        """Numbers of units, from the observation to the action."""
        return [len(self.observation_names), *(len(bias) for _, bias in self.layers)]

    def act(self, observation: Array) -> Array:
        """The deterministic action, shape (parts,), each in [-1, 1].

        Args:
            observation: Shape (n,), n = len(observation_names).
        """
        x = torch.as_tensor(observation, dtype=torch.float32)
        *hidden, (weight, bias) = self.layers
        for hidden_weight, hidden_bias in hidden:
            x = linear(x, hidden_weight, hidden_bias).relu()
        action: Array = linear(x, weight, bias).tanh().numpy()
        return action

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strengths to try on another network: only departures from an advice can be weakened."""
        return (1.0,) if self.anchor == "none" else STRENGTHS

    def check_strengths(self, strengths: Sequence[float]) -> None:
        """Check at how much of its strength the policy is to be tried.

        Raises:
            PolicyError: As the function `check_strengths`; or other than 1 without an anchor.
        """
        check_strengths(strengths)
        if self.anchor == "none" and any(strength != 1 for strength in strengths):
            raise PolicyError(
                "strengths weakens departures from the program's advice, and this policy was "
                f"learned with agent.anchor=none: leave it out, or give [1], got {strengths!r}."
            )

    @property
    def observed(self) -> tuple[str, ...]:
        """What the environment that it walks is to observe."""
        return self.observation_names

    def check_features(self) -> None:
        """Check that there is a feature for everything that the policy observes.

        Raises:
            PolicyError: There is not.
        """
        parts = self.action_names[1:]
        features = {*FEATURES, *(f"{w}_{part}" for w in ("previous", "advised") for part in parts)}
        known = [name for name in self.observation_names if name in features]
        check_observations(self.observation_names, known)

    def walk(self, env: CompressionEnv, strength: float = 1.0, index: int = 1) -> Trial:
        """Compress the environment's network by one walk without noise: one evaluation.

        Args:
            strength: Factor of the actions. With an anchor they are departures from the program's
                advice: 1 is what was learned, 0 the advice.
            index: Number of the evaluation, kept in the trial.

        Raises:
            PolicyError: The environment observes or decides something else than what the policy
                learned on.
        """
        check_observations(self.observation_names, env.observation_names)
        if self.action_names != env.action_names:
            raise PolicyError(
                f"The policy decides {', '.join(self.action_names)}; here "
                f"{', '.join(env.action_names)} are to be decided. Use the decisions of the run "
                "that learned it, or search again."
            )
        walked = anchored(env, self.anchor)
        factor = np.float32(strength)
        return run_episode(walked, lambda _, seen: self.act(seen) * factor, index).trial

    def save(self, folder: Path) -> None:
        """Write ``policy.safetensors`` and ``policy.json`` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        tensors = self._tensors()
        description = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "algorithm": self.algorithm,
            "observation_names": list(self.observation_names),
            "anchor": self.anchor,
            "action_names": list(self.action_names),
            **_CONSTANTS,
            "layer_sizes": self.layer_sizes,
            "weights": weights_id(tensors),
        }
        write_tensors(folder / WEIGHTS_FILE, tensors, {"format": FORMAT})
        write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Policy:
        """Read a policy that :meth:`save` wrote; nothing in it can run code.

        Raises:
            PolicyError: A file is missing or unreadable, of another version, or the two do not
                fit each other.
        """
        path = folder / DESCRIPTION_FILE
        description = _read_description(path)
        names, sizes = description["observation_names"], description["layer_sizes"]
        tensors = read_weights(folder, shapes_of("layers", sizes), description["weights"])
        layers = tuple(
            (tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"])
            for i in range(len(sizes) - 1)
        )
        return cls(
            description["algorithm"],
            tuple(names),
            layers,
            description["anchor"],
            tuple(description["action_names"]),
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"layers.{i}.{part}": tensor
            for i, layer in enumerate(self.layers)
            for part, tensor in zip(("weight", "bias"), layer, strict=True)
        }


def check_strengths(strengths: Sequence[float]) -> None:
    """Check at how much of its strength a policy is to be tried.

    Raises:
        PolicyError: Not different numbers in [0, 1], or no number.
    """
    fit = isinstance(strengths, (list, tuple)) and all(map(_is_strength, strengths))
    if not fit or not strengths or len({*strengths}) < len(strengths):
        raise PolicyError(
            "strengths must be a list of different numbers from 0 (the program's advice) to 1 "
            f"(what was learned), at least one, got {strengths!r}."
        )


def check_observations(learned: Sequence[str], seen: Sequence[str]) -> None:
    """Check that a policy is given what it learned on, in the same order.

    Raises:
        PolicyError: It is not; names what is missing and what is new.
    """
    if list(learned) == list(seen):
        return
    missing = [name for name in learned if name not in seen]
    new = [name for name in seen if name not in learned]
    difference = "; ".join(
        f"{what}: {', '.join(names)}"
        for what, names in (("missing here", missing), ("unknown to the policy", new))
        if names
    )
    raise PolicyError(
        f"The policy was learned on {len(learned)} observations, the environment has {len(seen)}. "
        f"{difference or 'Their order differs'}. Use the env settings of the run that learned it, "
        "or search again."
    )


def _is_strength(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list_of(value: Any, accepts: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(accepts, value))


_FIRST = list(ACTION_NAMES)
# Key -> (what it accepts, how to say it).
_FIELDS: dict[str, Kind] = {
    "algorithm": (_is_name, "a name"),
    "observation_names": (lambda value: _is_list_of(value, _is_name), "a list of names"),
    "anchor": (lambda value: value in ANCHORS, f"one of {', '.join(ANCHORS)}"),
    "action_names": (
        lambda value: _is_list_of(value, _is_name) and value[: len(ACTION_NAMES)] == _FIRST,
        f"a list of names that begins with {', '.join(ACTION_NAMES)}",
    ),
    "layer_sizes": (lambda value: _is_list_of(value, is_count), "a list of sizes of at least 1"),
    "weights": (_is_name, "the identifier of the weights"),
}


def _read_description(path: Path) -> dict[str, Any]:
    advice = "Use the amc that wrote it, copy both files again, or search again."
    document = read_document(
        path, "Policy description", FORMAT, FORMAT_VERSION, _FIELDS, PolicyError, advice
    )
    check_constants(path, document, _CONSTANTS)
    names, sizes = document["observation_names"], document["layer_sizes"]
    actions = len(document["action_names"])
    if len(sizes) < 2 or (sizes[0], sizes[-1]) != (len(names), actions):
        raise PolicyError(
            f"{path}: 'layer_sizes' must go from {len(names)} (observation_names) to "
            f"{actions} (action_names), got {shown(sizes)}."
        )
    return document
