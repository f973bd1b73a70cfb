"""The state of a Stable-Baselines3 algorithm as tensors and numbers, without pickle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from torch import Tensor

from agents.state import AgentState
from amc.utils.documents import WHOLE, shown

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
    """Make a freshly built model, of the same settings, what it was.

    Raises:
        AmcError: The snapshot is of another model.
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in snapshot.tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    now = model.get_parameters()
    entropy = getattr(model, _ENTROPY, None)
    wanted = {*now} if entropy is None else {*now, _ENTROPY}
    unknown = sorted({*parts} - wanted)
    if unknown:
        raise snapshot.misfit(f"does not fit this agent: it has {shown(unknown)}")
    if entropy is not None:
        with torch.no_grad():
            entropy.copy_(snapshot.tensor(_ENTROPY, entropy))
    restored: dict[str, Any] = {
        part: _restored(model, part, now[part], parts[part], snapshot) for part in now
    }
    updates = snapshot.number("updates", WHOLE)
    model.set_parameters(restored, exact_match=True)
    model._n_updates = updates


def _restored(
    model: OffPolicyAlgorithm,
    part: str,
    now: Mapping[str, Any],
    flat: dict[str, Tensor],
    snapshot: AgentState,
) -> dict[str, Any]:
    """The state dict of a part, checked against the one that it has now."""
    if not _is_optimizer(part):
        wanted = dict(now)
    else:
        groups = recursive_getattr(model, part).param_groups
        trained = [parameter for group in groups for parameter in group["params"]]
        shapes = {"step": torch.zeros(()), "exp_avg": None, "exp_avg_sq": None}  # Adam's
        wanted = {
            f"{index}/{name}": parameter if scalar is None else scalar
            for index, parameter in enumerate(trained)
            for name, scalar in shapes.items()
            if flat  # nothing before the first step
        }
    if flat.keys() != wanted.keys():
        odd = sorted(flat.keys() ^ wanted.keys())
        raise snapshot.misfit(f"does not fit this agent: it lacks or adds {part} {shown(odd)}")
    found = {name: snapshot.tensor(f"{part}/{name}", like) for name, like in wanted.items()}
    if any(float(found[name]) < 1 for name in found if name.endswith("/step")):
        raise snapshot.misfit(f"is damaged: the steps of {part} must be at least 1")
    return _nested(part, {name: tensor.clone() for name, tensor in found.items()}, now)


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
