"""The walk over a network's layers as a Gymnasium environment."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Unpack

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from torch import nn

from amc.cost.budget import BudgetLike
from amc.cost.model import ROUNDING, CostModel, WalkCosts
from amc.cost.shipped import DeviceLike
from amc.data import DataSet
from amc.errors import ConfigError
from amc.evaluate import Evaluation
from amc.recovery.errors import LayerErrors
from amc.store import EvaluationStore
from amc.strategy import FLOAT, IDENTITY, Strategy
from amc.task import CompressionTask, Problem, ProblemOptions
from envs.action import BitChoice, from_ratio, to_ratio
from envs.belief import ErrorBelief
from envs.guide import Guide
from envs.levels import nearest_level
from envs.observation import HIGH, INFORMED, LOW, LayerView, feature_names, observe
from envs.outlook import Outlook, outlooks
from envs.program import program_strategy
from envs.reward import DEFAULT_REWARD, Outcome, Reward, RewardLike, build_reward, outcome_of
from envs.uniform import uniform_strategies

Array = npt.NDArray[np.float32]
Evaluate = Callable[[Strategy], Evaluation]


class CompressionEnv(gymnasium.Env[Array, Array]):
    """Compress a trained network, one layer a step.

    An episode walks over the convolution and linear layers in execution order. At layer t the
    agent decides the preserve ratio of the channel groups that the layer is the first to produce,
    and the layer's weight and activation bits. After the last layer the strategy is applied and
    evaluated once.

    ### Actions: ``Box(-1, 1, (3,))``

    | index | decides | -1 | 1 |
    |---|---|---|---|
    | 0 | preserve_ratio | min_preserve_ratio | 1 |
    | 1 | weight_bits | fewest on offer | most on offer |
    | 2 | activation_bits | fewest on offer | most on offer |

    The ratio is rounded to the nearest channel count on offer (the device's channel step); bits to
    the nearest pair on offer. Where residual blocks may go, -1 is a ratio of 0: the block of these
    channels is left out, and the steps of its later layers decide nothing that counts. Where the
    layer decides no group (its channels were decided by an earlier layer, or are frozen), part 0 is
    ignored and the feature ``decides_ratio`` is 0; where all pairs on offer have the same weight
    (activation) bits, part 1 (2) is ignored.

    ### The budget

    With a hard reward every strategy meets the budget: an action is accepted if its cost, with all
    later layers at their cheapest, fits; otherwise the nearest decision that fits is taken
    (Euclidean distance between actions). ``info["clamped"]`` says so and
    ``info["executed_action"]`` says which; parts that are ignored stay as they were asked. As the
    cheapest completion fits at the start (else `UnreachableBudgetError`), there always is one.
    With a reward that prices the cost itself (``hard=False``) nothing is clamped, and a strategy
    may exceed the budget.

    ### Observations: ``Box(-2, 4, (n,), float32)``

    The chosen features of `envs.observation.FEATURES`, in the order of ``observation_names``.

    ### Reward

    0 until the last step, then the named reward of the evaluated strategy.

    ### End

    Terminates after the last layer; never truncates. ``info`` of the last step holds ``strategy``,
    ``evaluation`` and ``meets_budget``.

    ### Determinism

    The environment draws no random numbers: the same actions give the same episode.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own annotation)

    def __init__(
        self,
        costs: CostModel,
        evaluate: Evaluate,
        original: Evaluation,
        reward: RewardLike = DEFAULT_REWARD,
        observation: str | Sequence[str] | None = None,
        errors: Callable[[], LayerErrors] | None = None,
    ) -> None:
        """
        Args:
            costs: Prices of every decision, and the bound.
            evaluate: Applies a strategy and evaluates it; called once an episode.
            original: Evaluation of the original network on the same images.
            reward: A name of `envs.reward.REWARDS`, or a function of an `Outcome`.
            observation: Features that the agent sees, or "plain" or "all"; None: all that are
                known.
            errors: Gives the estimated errors of all decisions; called once, when needed.

        Raises:
            ConfigError: A feature is unknown, or needs errors that are not given; or the reward
                goes by a score that the original has not.
        """
        if observation is None and errors is None:
            observation = "plain"
        self.observation_names = feature_names(observation)
        self._informed = any(name in INFORMED for name in self.observation_names)
        self.costs, self._evaluate, self._original = costs, evaluate, original
        self._errors = errors
        if self._informed:
            self.check_informed("env.observation")
        self.task: CompressionTask | None = None
        self._reward = build_reward(reward)
        self._graph = costs.graph
        self._reward.check_original(self._outcome(original, IDENTITY, costs.original))
        self._bits = BitChoice(costs.choices.pairs).coordinates  # (pairs, 2)
        self._lowest = 0.0 if costs.choices.drop_blocks else costs.choices.min_preserve_ratio
        self.observation_space = spaces.Box(LOW, HIGH, (len(self.observation_names),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self._walk: WalkCosts | None = None
        self._advised: tuple[int, int] | None = None
        self._step = 0

    @property
    def layers_count(self) -> int:
        """Steps of an episode."""
        return len(self._graph.layers)

    @property
    def reward(self) -> Reward:
        """What the agent maximises."""
        return self._reward

    @property
    def reward_name(self) -> str:
        return self._reward.name

    @property
    def is_soft(self) -> bool:
        """Whether the reward prices the cost itself: strategies may then exceed the budget."""
        return not self._reward.hard

    @property
    def bound(self) -> float:
        """What strategies must not cost more than, in the budget's unit."""
        return self.costs.bound

    # -- Gymnasium ----------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._walk, self._step = self.costs.start(), 0
        self._previous_ratio, self._previous_bits = 1.0, FLOAT
        self._advised = None
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._walk is None or self._step >= self.layers_count:
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no walk is under way.")
        asked = checked_action(action)
        level, pair, clamped = self._choose(asked)
        executed = asked
        if clamped:
            decided = self._action_of(self._step, level, pair)
            executed = np.where(self.effective_actions()[self._step], decided, asked)
        self._walk.decide(self._step, level, pair)
        layer = self._graph.layers[self._step]
        self._previous_ratio = layer.outputs.count(self._walk.kept) / layer.out_channels
        self._previous_bits = self.costs.choices.pairs[pair]
        self._step += 1
        self._advised = None
        info: dict[str, Any] = {
            "executed_action": executed.astype(np.float32),
            "clamped": clamped,
        }
        done = self._step == self.layers_count
        reward = self._finish(info) if done else 0.0
        return self._observation(), reward, done, False, info

    # -- decisions ----------------------------------------------------------------------------

    def _choose(self, asked: npt.NDArray[np.float64]) -> tuple[int, int, bool]:
        """Ratio level and bit pair nearest to what was asked, within the budget."""
        walk, layer = self._walk, self._step
        assert walk is not None
        ratios = self.costs.level_ratios[layer]
        wanted = to_ratio(float(asked[0]), self._lowest)
        level = int(np.abs(ratios - wanted).argmin())
        pair = int(np.square(self._bits - asked[1:]).sum(1).argmin())
        bound = self.costs.bound
        if not self._reward.hard or walk.decision_costs(layer, level, pair)[0, 0] <= bound:
            return level, pair, False
        for other in self.costs.completions(walk, layer):
            if other.decision_costs(layer, level, pair)[0, 0] <= bound:
                self._walk = other
                return level, pair, False
        totals = walk.decision_costs(layer, None, None)  # (levels, pairs)
        along_ratio = np.square(from_ratio(ratios, self._lowest) - asked[0])
        if len(ratios) == 1:
            along_ratio = np.zeros(1)
        distance = along_ratio[:, None] + np.square(self._bits - asked[1:]).sum(1)[None, :]
        distance[totals > bound * (1 + ROUNDING)] = np.inf
        while True:  # the exact cost decides; the cheapest completion always passes
            level, pair = (int(i) for i in np.unravel_index(distance.argmin(), distance.shape))
            if walk.decision_costs(layer, level, pair)[0, 0] <= bound:
                return level, pair, True
            distance[level, pair] = np.inf

    def _action_of(self, layer: int, level: int, pair: int) -> npt.NDArray[np.float64]:
        ratio = float(from_ratio(self.costs.level_ratios[layer][level], self._lowest))
        return np.array([ratio, *self._bits[pair]])

    def encode(self, strategy: Strategy) -> list[Array]:
        """Actions that walk to a strategy made of this environment's choices.

        The walk arrives if the strategy meets the budget and prices rise with channels; where a
        device's table falls, a step towards it may be clamped.

        Raises:
            ConfigError: The strategy has channel counts or bits that are not on offer.
        """
        kept, pairs = self.costs.encode(strategy)
        actions = []
        for layer in self._graph.layers:
            level = nearest_level(self.costs, kept, layer.index)
            actions.append(self._action_of(layer.index, level, int(pairs[layer.index])))
        return [action.astype(np.float32) for action in actions]

    def effective_actions(self) -> npt.NDArray[np.bool_]:
        """Which parts of every step's action are not ignored, shape (layers, 3)."""
        decides = np.array([len(levels) > 1 for levels in self.costs.levels])
        bits = np.broadcast_to(np.ptp(self._bits, 0) > 0, (self.layers_count, 2))
        return np.concatenate([decides[:, None], bits], 1)

    def uniform_strategies(self) -> list[Strategy]:
        """One preserve ratio and one bit pair for all: see `envs.uniform.uniform_strategies`."""
        return uniform_strategies(self.costs)

    # -- what is known without an evaluation --------------------------------------------------

    @cached_property
    def errors(self) -> LayerErrors | None:
        """Estimated errors of all decisions; None if they are not known."""
        return None if self._errors is None else self._errors()

    @cached_property
    def guide(self) -> Guide:
        """What the program would decide at each step.

        Raises:
            ConfigError: No errors are known.
        """
        return Guide(self.costs, self.check_informed("agent.anchor=program"))

    @cached_property
    def _outlooks(self) -> list[Outlook]:
        return outlooks(self.costs, self.check_informed("env.observation"))

    def check_informed(self, what: str) -> LayerErrors:
        """The errors, for what cannot do without them.

        Raises:
            ConfigError: They are not known.
        """
        if self._errors is None or self.errors is None:
            raise ConfigError(
                f"{what} needs the estimated errors of decisions, and this environment was made "
                "without. Give CompressionEnv(errors=...), or use plain features, anchor=none, "
                "warm_start=uniform and belief_share=0."
            )
        return self.errors

    def program_strategies(self) -> list[Strategy]:
        """The allocation of least estimated error: see `envs.program.program_strategy`.

        Raises:
            ConfigError: No errors are known.
        """
        return [self._program]

    @cached_property
    def _program(self) -> Strategy:
        return program_strategy(self.costs, self.check_informed("warm_start=program"))

    def belief(self) -> ErrorBelief:
        """What is believed of the estimated errors before any evaluation.

        Raises:
            ConfigError: No errors are known, or the original has no finite reward.
        """
        errors = self.check_informed("agent.belief_share")
        whole = self._rewarded(self._original, IDENTITY, self.costs.original)
        if not math.isfinite(whole):
            raise ConfigError(
                "agent.belief_share compares rewards with the original network's, which must be a "
                f"finite number: reward={self.reward_name} gives {whole!r} for {self._original}. "
                "Choose another reward, or agent.belief_share=0."
            )
        return ErrorBelief(self.costs, errors, whole)

    def advised_action(self) -> npt.NDArray[np.float64]:
        """The action that the guide advises for the next step, shape (3,)."""
        return self._action_of(self._step, *self._advice())

    def advice_along(self, strategy: Strategy) -> list[npt.NDArray[np.float64]]:
        """What the guide advises at each step of the walk to a strategy, each of shape (3,)."""
        kept, pairs = self.costs.encode(strategy)
        walk, advice = self.costs.start(), []
        for layer in self._graph.layers:
            advice.append(self._action_of(layer.index, *self.guide.decision(layer.index, walk)))
            level = nearest_level(self.costs, kept, layer.index)
            walk.decide(layer.index, level, int(pairs[layer.index]))
        return advice

    def _advice(self) -> tuple[int, int]:
        """Level and pair that the guide advises for the next step; looked up once a step."""
        assert self._walk is not None
        if self._advised is None:
            self._advised = self.guide.decision(self._step, self._walk)
        return self._advised

    # -- observation and end ------------------------------------------------------------------

    def _observation(self) -> Array:
        assert self._walk is not None
        step = min(self._step, self.layers_count - 1)
        layer = self._graph.layers[step]
        total, bound = self.costs.original, self.costs.bound
        now = self._walk.layer_costs()
        full = self.costs.original_costs
        view = LayerView(
            layer=layer,
            layers=self.layers_count,
            decides=len(self.costs.level_ratios[step]) > 1,
            input_ratio=layer.inputs.count(self._walk.kept) / layer.in_channels,
            cost_share=float(full[step]) / total,
            saved=float((full[: self._step] - now[: self._step]).sum()) / total,
            rest=float(full[step + 1 :].sum()) / total,
            spent=self._walk.total / bound,
            floor_rest=float(now[self._step :].sum()) / bound,
            budget_left=(bound - float(now[: self._step].sum()))
            / max(float(full[self._step :].sum()), 1e-9 * total),
            previous_ratio=self._previous_ratio,
            previous_bits=self._previous_bits,
        )
        if self._informed:
            view = self._inform(view, step)
        return observe(view, self.observation_names)

    def _inform(self, view: LayerView, step: int) -> LayerView:
        if self._step == self.layers_count:  # nothing is left to advise on
            return replace(view, outlook=self._outlooks[step])
        level, pair = self._advice()
        return replace(
            view,
            outlook=self._outlooks[step],
            advised_ratio=float(self.costs.level_ratios[step][level]),
            advised_bits=self.costs.choices.pairs[pair],
        )

    def _finish(self, info: dict[str, Any]) -> float:
        walk = self._walk
        assert walk is not None
        info["strategy"] = self.costs.decode(walk.kept, walk.pairs)
        info["evaluation"], reward = self.evaluate(info["strategy"])
        info["meets_budget"] = walk.total <= self.costs.bound
        return reward

    def evaluate(self, strategy: Strategy) -> tuple[Evaluation, float]:
        """Evaluation and reward of a strategy, without a walk: within the budget or not.

        Raises:
            ConfigError: The strategy has channel counts or bits that are not on offer.
        """
        cost = self.costs.cost_of(strategy)
        evaluation = self._evaluate(strategy)
        evaluation = replace(evaluation, costs={**evaluation.costs, self.costs.budget.metric: cost})
        return evaluation, self._rewarded(evaluation, strategy, cost)

    def reward_of(self, strategy: Strategy, evaluation: Evaluation | None = None) -> float:
        """Reward of a strategy, without a walk.

        Args:
            evaluation: Its evaluation where it is known; None: it is evaluated.

        Raises:
            ConfigError: As `evaluate`.
        """
        if evaluation is None:
            return self.evaluate(strategy)[1]
        return self._rewarded(evaluation, strategy, self.costs.cost_of(strategy))

    def _rewarded(self, evaluation: Evaluation, strategy: Strategy, cost: float) -> float:
        return self._reward(self._outcome(evaluation, strategy, cost))

    def _outcome(self, evaluation: Evaluation, strategy: Strategy, cost: float) -> Outcome:
        return outcome_of(self.costs, strategy, cost, evaluation, self._original)


def checked_action(action: Array) -> npt.NDArray[np.float64]:
    """An action as three finite numbers, cut off at -1 and 1.

    Raises:
        ConfigError: It is not.
    """
    asked = np.asarray(action, np.float64)
    if asked.size != 3 or not np.isfinite(asked).all():
        raise ConfigError(f"An action must be three numbers in [-1, 1], got {action!r}.")
    return np.clip(asked.reshape(3), -1, 1)


def environment(
    task: CompressionTask,
    reward: RewardLike = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    costs: CostModel | None = None,
) -> CompressionEnv:
    """The walk over a task's network.

    Args:
        costs: With another bound than the task's.
    """
    return CompressionEnv(
        costs or task.costs,
        task.evaluate,
        task.original,
        reward,
        observation,
        lambda: task.errors,
    )


def make_env(
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = None,
    budget: BudgetLike = 0.5,
    *,
    reward: RewardLike = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    store: EvaluationStore | None = None,
    **problem: Unpack[ProblemOptions],
) -> CompressionEnv:
    """What ``gymnasium.make("amc/Compression-v0", network=..., data=...)`` builds.

    Args:
        network: Trained; not modified.
        device: Name of a device that comes with amc, the options of one, or itself; None where
            the budget's metric needs none.
        budget: A budget, its fields, or a fraction of the original's latency.
        store: Where evaluations are looked up and remembered.
        problem: Further arguments of `amc.task.Problem`.

    Returns:
        The environment; its attribute ``task`` is the `CompressionTask`.

    Raises:
        ConfigError: An option has an unknown name.
        AmcError: As `Problem`, `CompressionTask` and `CompressionEnv`.
    """
    known = [*ProblemOptions.__annotations__, "store"]
    for name in problem:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"amc/Compression-v0 has no option {name!r}; beside network, data, device, budget, "
                f"reward and observation it takes {', '.join(known)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    task = CompressionTask(Problem(network, data, device, budget, **problem), store)
    env = environment(task, reward, observation)
    env.task = task
    return env
