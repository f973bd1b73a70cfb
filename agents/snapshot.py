"""The state of a Stable-Baselines3 algorithm as tensors and numbers, without pickle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from agents.state import AgentState

_ENTROPY = "log_ent_coef"  # SAC's learned weight: in no module


def take_snapshot(model: OffPolicyAlgorithm) -> AgentState:
    """Networks, targets, optimizers, the learned entropy weight, and the number of updates."""
    tensors: dict[str, Tensor] = {}
    for part, state in model.get_parameters().items():
        for name, value in _flat(part, state).items():
            tensors[f"{part}/{name}"] = value.detach().clone()
    entropy = getattr(model, _ENTROPY, None)
    if entropy is not None:
        tensors[_ENTROPY] = entropy.detach().clone()
    return AgentState(tensors, {"updates": model._n_updates})


def restore_snapshot(model: OffPolicyAlgorithm, snapshot: AgentState) -> None:
    """Make a freshly built model, of the same settings, what it was."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in snapshot.tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value.clone()
    entropy = parts.pop(_ENTROPY, None)
    if entropy is not None:
        with torch.no_grad():
            getattr(model, _ENTROPY).copy_(entropy[""])
    now = model.get_parameters()
    restored: dict[str, Any] = {part: _nested(part, parts[part], now[part]) for part in now}
    model.set_parameters(restored, exact_match=True)
    model._n_updates = int(snapshot.numbers["updates"])


def _is_optimizer(part: str) -> bool:
    return part.endswith("optimizer")


def _flat(part: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """An optimizer's state by "index/name"; what its groups hold comes from the settings."""
    if not _is_optimizer(part):
        return dict(state)
    of_parameters = state["state"].items()
    return {f"{index}/{name}": v for index, entry in of_parameters for name, v in entry.items()}


def _nested(part: str, flat: dict[str, Tensor], now: Mapping[str, Any]) -> dict[str, Any]:
    if not _is_optimizer(part):
        return dict(flat)
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in flat.items():
        index, _, name = key.partition("/")
        state[int(index)][name] = value
    return {"state": dict(state), "param_groups": now["param_groups"]}
