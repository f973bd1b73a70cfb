"""Actors that say how far to trust estimates, fitted to strategies whose loss is known.

With e(s) the estimated error of a strategy, by layer and part, f = REACH^a the factors of an
actor's actions and l(s) what the strategy was seen to lose, an actor minimises the squared error
of log(sum f e(s)) - log l(s), but for a constant of each task: which strategy loses less is all
that a decision needs. Nothing is evaluated: any search that was remembered serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agents.compute import AgentCompute
from agents.settings import check_settings, count, number
from agents.trust import Layers, TrustPolicy
from amc.errors import PolicyError
from envs.trust import REACH, TRUST_FEATURES, TRUST_PARTS

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32]

FEWEST = 8  # strategies of a task that say anything
FLOOR = 0.05  # of the median: what small losses are off by all the same
LIGHTEST, HEAVIEST = 0.2, 3.0  # weights of strategies: those that lose little count more
SPREAD = 0.1  # added to a feature's standard deviation: of those that hardly vary


@dataclass(frozen=True, eq=False)
class Remembered:
    """Strategies of one task that were evaluated, by any search.

    Attributes:
        family: Name of the network: actors differ in which of these they are fitted to.
        name: Of the task.
        observations: Of every layer, shape (layers, features).
        parts: What each strategy is estimated to lose, in nats, shape (strategies, layers, 4).
        lost: What it was seen to lose, in the reward's unit, shape (strategies,).
    """

    family: str
    name: str
    observations: Array
    parts: FloatArray
    lost: FloatArray

    @property
    def is_telling(self) -> bool:
        """Whether there is anything to learn from: enough strategies lose anything."""
        return int((self.lost > 0).sum()) >= FEWEST and bool(self.parts.sum() > 0)


@dataclass(frozen=True)
class FitSettings:
    """How actors are fitted.

    Attributes:
        actors: How many: each on a draw of the networks, with replacement.
        hidden: Units of both hidden layers.
        steps: Of Adam.
        learning_rate: Its rate.
        restraint: Weight of the actions' mean square: how little is corrected without reason.
    """

    actors: int = count(8)
    hidden: int = count(32)
    steps: int = count(400)
    learning_rate: float = number(3e-3, 0, 1, above=True)
    restraint: float = number(0.1, 0)

    def __post_init__(self) -> None:
        check_settings("amc train", self, "fit")


def fitted(
    tasks: Sequence[Remembered],
    settings: FitSettings,
    seed: int,
    origin: Mapping[str, Any] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> TrustPolicy:
    """An ensemble fitted to what is remembered of some tasks; the same seed, the same policy.

    Args:
        origin: How the policy was made, kept with it.
        advance: Called after every actor.

    Raises:
        PolicyError: Nothing can be learned from any of the tasks.
    """
    telling = [task for task in tasks if task.is_telling]
    if not telling:
        raise PolicyError(
            f"Nothing to learn a policy from: none of the {len(tasks)} tasks has {FEWEST} "
            "evaluated strategies that lose anything. Give tighter budgets, or more episodes."
        )
    actors = []
    for member, draw in enumerate(np.random.SeedSequence(seed).spawn(settings.actors)):
        rng, compute = np.random.default_rng(draw), AgentCompute(int(draw.generate_state(1)[0]))
        with compute.running():
            actors.append(_fit(_drawn(telling, rng, whole=member == 0), settings))
        advance()
    return TrustPolicy(tuple(actors), origin=origin or {})


def _drawn(
    tasks: Sequence[Remembered], rng: np.random.Generator, *, whole: bool
) -> list[Remembered]:
    """Tasks of a draw of the networks, as often as they are drawn; the first actor has all."""
    families = sorted({task.family for task in tasks})
    if whole or len(families) == 1:
        return list(tasks)
    chosen = rng.choice(families, len(families)).tolist()
    return [task for family in chosen for task in tasks if task.family == family]


@dataclass(frozen=True)
class _Batch:
    """A task as tensors; `lost` as logarithms without their weighted mean."""

    seen: Tensor
    parts: Tensor
    floor: Tensor
    lost: Tensor
    weights: Tensor


def _batch(task: Remembered) -> _Batch:
    telling = task.lost > 0
    lost, parts = task.lost[telling], task.parts[telling]
    median = float(np.median(lost))
    weights = np.clip(median / lost, LIGHTEST, HEAVIEST)
    weights = weights / weights.sum()
    logs = np.log(lost + FLOOR * median)
    floor = FLOOR * float(np.median(parts.sum((1, 2))))
    return _Batch(
        torch.from_numpy(task.observations),
        torch.from_numpy(parts.astype(np.float32)),
        torch.tensor(floor, dtype=torch.float32),
        torch.from_numpy((logs - (weights * logs).sum()).astype(np.float32)),
        torch.from_numpy(weights.astype(np.float32)),
    )


def _fit(tasks: Sequence[Remembered], settings: FitSettings) -> Layers:
    seen = torch.from_numpy(np.concatenate([task.observations for task in tasks]))
    mean, deviation = seen.mean(0), seen.std(0, correction=0) + SPREAD
    hidden = settings.hidden
    actor = nn.Sequential(
        nn.Linear(len(TRUST_FEATURES), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, len(TRUST_PARTS)),
        nn.Tanh(),
    )
    last = actor[4]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)  # nothing learned: the estimates as they are
    nn.init.zeros_(last.bias)
    optimizer = torch.optim.Adam(actor.parameters(), settings.learning_rate)
    batches = [_batch(task) for task in tasks]
    for _ in range(settings.steps):
        losses = []
        for batch in batches:
            action = actor((batch.seen - mean) / deviation)
            factors = torch.exp(action * np.log(REACH))
            predicted = torch.log((batch.parts * factors).sum((1, 2)) + batch.floor)
            predicted = predicted - (batch.weights * predicted).sum()
            off = (batch.weights * (predicted - batch.lost).square()).sum()
            losses.append(off + settings.restraint * action.square().mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _layers(actor, mean, deviation)


def _layers(actor: nn.Sequential, mean: Tensor, deviation: Tensor) -> Layers:
    """The actor's layers, the first of them on features as they are."""
    linears = [module for module in actor if isinstance(module, nn.Linear)]
    layers = [(module.weight.detach().clone(), module.bias.detach().clone()) for module in linears]
    weight, bias = layers[0]
    weight = weight / deviation
    layers[0] = weight, bias - weight @ mean
    return tuple(layers)
