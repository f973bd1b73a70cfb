"""The walk over a network's layers as a Gymnasium environment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amc.cost.model import ROUNDING, CostModel, WalkCosts
from amc.decisions import value_in
from amc.errors import ConfigError
from amc.problem.evaluate import Evaluation
from amc.problem.task import CompressionTask
from amc.recovery.errors import LayerErrors
from amc.strategy import IDENTITY, Option, Strategy
from envs.action import RATIO, checked_action, coordinates, from_ratio, to_ratio
from envs.estimates import LayerEstimates, layer_estimates
from envs.hypothesis import Hypothesis
from envs.knapsack import knapsack_strategy
from envs.levels import nearest_level
from envs.look_ahead import LookAhead
from envs.observation import (
    HIGH,
    LOW,
    Features,
    feature_names,
    is_informed,
    layer_view,
    observe,
)
from envs.render import Picture, draw_walk
from envs.reward import DEFAULT_REWARD, Outcome, Reward, RewardLike, build_reward, outcome_of
from envs.surrogate import Surrogate
from envs.trust import Trust
from envs.uniform import uniform_strategies

Array = npt.NDArray[np.float32]
Evaluate = Callable[[Strategy], Evaluation]
Foresee = Callable[[Sequence[Strategy]], None]


class CompressionEnv(gymnasium.Env[Array, Array]):
    """Compress a trained network, one layer a step.

    An episode walks over the convolution and linear layers in execution order. At layer t the
    agent decides the preserve ratio of the channel groups that the layer is the first to produce,
    and the layer's weight and activation bits. After the last layer the strategy is applied and
    evaluated once.

    ### Actions: ``Box(-1, 1, (n,))``, by default n = 3

    | index | decides | -1 | 1 |
    |---|---|---|---|
    | 0 | preserve_ratio | min_preserve_ratio | 1 |
    | 1 | weight_bits | fewest on offer | most on offer |
    | 2 | activation_bits | fewest on offer | most on offer |
    | 3 ... | the parts of other decisions (`amc.decisions`) | smallest | largest |

    The ratio is rounded to the nearest channel count on offer (the device's channel step); the
    others to the nearest option on offer. Where residual blocks may go, -1 is a ratio of 0: the
    block of these channels is left out, and the steps of its later layers decide nothing that
    counts. Where the layer decides no group (its channels were decided by an earlier layer, or are
    frozen), part 0 is ignored and the feature ``decides_ratio`` is 0; where all options on offer
    have the same number in a part, that part is ignored.

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

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own)

    def __init__(
        self,
        costs: CostModel,
        evaluate: Evaluate,
        original: Evaluation,
        reward: RewardLike = DEFAULT_REWARD,
        observation: str | Sequence[str] | None = None,
        errors: Callable[[], LayerErrors] | None = None,
        render_mode: str | None = None,
        *,
        proposals: int = 1,
        foresee: Foresee | None = None,
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
            render_mode: "rgb_array": `render` draws the walk (`envs.render`).
            proposals: So many strategies of a searcher are under way at any time: proposed, and
                not learned from yet.
            foresee: Told of strategies that `evaluate` will be called with, so that they can be
                evaluated side by side.

        Raises:
            ConfigError: A feature is unknown, or needs errors that are not given; or the reward
                goes by a score that the original has not; or there is no such render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        self.render_mode = render_mode
        if observation is None and errors is None:
            observation = "plain"
        self.action_names = (RATIO, *costs.choices.parts)
        self.observation_names = feature_names(observation, costs.choices.parts[2:])
        self._informed = is_informed(self.observation_names)
        self.costs, self._evaluate, self._original = costs, evaluate, original
        self._errors = errors
        self._uncorrected: CompressionEnv | None = None
        if self._informed:
            self.check_informed("env.observation")
        self.task: CompressionTask | None = None
        self._reward = build_reward(reward)
        self._graph = costs.graph
        self._reward.check_original(self._outcome(original, IDENTITY, costs.original))
        self._options = coordinates(costs.choices.numbers)  # (options, parts)
        self._seen = [self._features(option) for option in costs.choices.options]
        self._lowest = 0.0 if costs.choices.drop_blocks else costs.choices.min_preserve_ratio
        self.observation_space = spaces.Box(LOW, HIGH, (len(self.observation_names),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)
        self._walk: WalkCosts | None = None
        self._prior: tuple[int, int] | None = None
        self._step = 0
        self.proposals, self.foresee, self._deferring = proposals, foresee, False

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
    def whole_reward(self) -> float:
        """Reward of the original network."""
        return self._rewarded(self._original, IDENTITY, self.costs.original)

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
        self._previous = 1.0, self._features(Option())
        self._prior = None
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._walk is None or self._step >= self.layers_count:
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no walk is under way.")
        asked = checked_action(action, len(self.action_names))
        level, option, clamped = self._choose(asked)
        executed = asked
        if clamped:
            decided = self._action_of(self._step, level, option)
            executed = np.where(self.effective_actions()[self._step], decided, asked)
        self._walk.decide(self._step, level, option)
        layer = self._graph.layers[self._step]
        ratio = layer.outputs.count(self._walk.kept) / layer.out_channels
        self._previous = ratio, self._seen[option]
        self._step += 1
        self._prior = None
        info = {"executed_action": executed.astype(np.float32), "clamped": clamped}
        done = self._step == self.layers_count
        reward = self._finish(info) if done else 0.0
        return self._observation(), reward, done, False, info

    def render(self) -> Picture | None:
        """The walk so far, (height, width, 3); None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() draws nothing without render_mode='rgb_array'.")
            return None
        if self._walk is None:
            raise gymnasium.error.ResetNeeded("Call reset() before render(): there is no walk yet.")
        return draw_walk(self.costs, self._walk, self._step)

    def _choose(self, asked: npt.NDArray[np.float64]) -> tuple[int, int, bool]:
        """Ratio level and option nearest to what was asked, within the budget."""
        walk, layer = self._walk, self._step
        assert walk is not None
        ratios = self.costs.level_ratios[layer]
        wanted = to_ratio(float(asked[0]), self._lowest)
        level = int(np.abs(ratios - wanted).argmin())
        option = int(np.square(self._options - asked[1:]).sum(1).argmin())
        bound = self.costs.bound
        if not self._reward.hard or walk.decision_costs(layer, level, option)[0, 0] <= bound:
            return level, option, False
        for other in self.costs.completions(walk, layer):
            if other.decision_costs(layer, level, option)[0, 0] <= bound:
                self._walk = other
                return level, option, False
        totals = walk.decision_costs(layer, None, None)  # (levels, options)
        along_ratio = np.square(from_ratio(ratios, self._lowest) - asked[0])
        if len(ratios) == 1:
            along_ratio = np.zeros(1)
        distance = along_ratio[:, None] + np.square(self._options - asked[1:]).sum(1)[None, :]
        distance[totals > bound * (1 + ROUNDING)] = np.inf
        while True:  # the exact cost decides; the cheapest completion always passes
            level, option = (int(i) for i in np.unravel_index(distance.argmin(), distance.shape))
            if walk.decision_costs(layer, level, option)[0, 0] <= bound:
                return level, option, True
            distance[level, option] = np.inf

    def _action_of(self, layer: int, level: int, option: int) -> npt.NDArray[np.float64]:
        ratio = float(from_ratio(self.costs.level_ratios[layer][level], self._lowest))
        return np.array([ratio, *self._options[option]])

    def encode(self, strategy: Strategy) -> list[Array]:
        """Actions that walk to a strategy made of this environment's choices.

        The walk arrives if the strategy meets the budget and prices rise with channels; where a
        device's table falls, a step towards it may be clamped.

        Raises:
            ConfigError: The strategy has channel counts or bits that are not on offer.
        """
        kept, options = self.costs.encode(strategy)
        actions = []
        for layer in self._graph.layers:
            level = nearest_level(self.costs, kept, layer.index)
            actions.append(self._action_of(layer.index, level, int(options[layer.index])))
        return [action.astype(np.float32) for action in actions]

    def effective_actions(self) -> npt.NDArray[np.bool_]:
        """Which parts of every step's action are not ignored, shape (layers, parts)."""
        decides = np.array([len(levels) > 1 for levels in self.costs.levels])
        differ = np.ptp(self._options, 0) > 0
        options = np.broadcast_to(differ, (self.layers_count, len(differ)))
        return np.concatenate([decides[:, None], options], 1)

    def uniform_strategies(self) -> list[Strategy]:
        """One preserve ratio and one option for all: see `envs.uniform.uniform_strategies`."""
        return uniform_strategies(self.costs)

    # -- what is known without an evaluation --------------------------------------------------

    @cached_property
    def errors(self) -> LayerErrors | None:
        """Estimated errors of all decisions; None if they are not known."""
        return None if self._errors is None else self._errors()

    @cached_property
    def look_ahead(self) -> LookAhead:
        """What the knapsack would decide at each step.

        Raises:
            ConfigError: No errors are known.
        """
        return LookAhead(self.costs, self.check_informed("agent.anchor=program"))

    @cached_property
    def _estimates(self) -> list[LayerEstimates]:
        return layer_estimates(self.costs, self.check_informed("env.observation"))

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

    def knapsack_strategies(self) -> list[Strategy]:
        """The allocation of least estimated error: see `envs.knapsack.knapsack_strategy`.

        Where errors are corrected, that of the errors as they were estimated too.

        Raises:
            ConfigError: No errors are known.
        """
        before = [] if self._uncorrected is None else self._uncorrected.knapsack_strategies()
        return list(dict.fromkeys([self._allocated, *before]))

    def corrected(self, correct: Callable[[Trust], LayerErrors]) -> CompressionEnv:
        """The same walk, with estimated errors as a policy corrects them (`envs.trust`).

        Raises:
            ConfigError: No errors are known.
        """
        errors = self.check_informed("agent.prior")
        other = copy.copy(self)
        for name in ("errors", "look_ahead", "_estimates", "_allocated"):
            vars(other).pop(name, None)
        other._errors = lambda: correct(Trust(self.costs, errors))
        other._uncorrected, other._walk = self, None
        return other

    @cached_property
    def _allocated(self) -> Strategy:
        errors = self.check_informed("warm_start=program")
        solved = self.costs.allocated
        found = next((strategy for known, strategy in solved if known is errors), None)
        if found is None:
            found = knapsack_strategy(self.costs, errors)
            solved.append((errors, found))
        return found

    def surrogate(self) -> Surrogate:
        """What strategies lose, before any evaluation.

        Where errors are corrected, they are believed as they were estimated, too.

        Raises:
            ConfigError: No errors are known, or the original has no finite reward.
        """
        errors = self.check_informed("agent.belief_share")
        whole = self.whole_reward
        if not math.isfinite(whole):
            raise ConfigError(
                "agent.belief_share compares rewards with the original network's, which must be a "
                f"finite number: reward={self.reward_name} gives {whole!r} for {self._original}. "
                "Choose another reward, or agent.belief_share=0."
            )
        known = [errors]
        if self._uncorrected is not None:
            known.append(self._uncorrected.check_informed("agent.belief_share"))
        return Surrogate([Hypothesis(self.costs, one) for one in known], whole)

    def prior_action(self) -> npt.NDArray[np.float64]:
        """The knapsack's advice for the next step, shape (parts,)."""
        return self._action_of(self._step, *self._advice())

    def prior_actions_along(self, strategy: Strategy) -> list[npt.NDArray[np.float64]]:
        """The prior action at each step of the walk to a strategy, each of shape (parts,)."""
        kept, options = self.costs.encode(strategy)
        walk, priors = self.costs.start(), []
        for layer in self._graph.layers:
            advice = self.look_ahead.decision(layer.index, walk)
            priors.append(self._action_of(layer.index, *advice))
            level = nearest_level(self.costs, kept, layer.index)
            walk.decide(layer.index, level, int(options[layer.index]))
        return priors

    def _advice(self) -> tuple[int, int]:
        """Level and option that the knapsack advises for the next step; looked up once a step."""
        assert self._walk is not None
        if self._prior is None:
            self._prior = self.look_ahead.decision(self._step, self._walk)
        return self._prior

    # -- observation and end ------------------------------------------------------------------

    def _observation(self) -> Array:
        assert self._walk is not None
        advised, estimates = (1.0, self._features(Option())), None
        if self._informed:
            estimates = self._estimates[min(self._step, self.layers_count - 1)]
            if self._step < self.layers_count:  # else nothing is left to advise on
                level, option = self._advice()
                advised = float(self.costs.level_ratios[self._step][level]), self._seen[option]
        view = layer_view(self.costs, self._walk, self._step, self._previous, advised, estimates)
        return observe(view, self.observation_names)

    def _features(self, option: Option) -> Features:
        """The numbers of an option as the agent sees them."""
        return {
            part: decision.feature(number)
            for decision in self.costs.choices.decisions
            for part, number in zip(decision.parts, value_in(option, decision), strict=True)
        }

    def _finish(self, info: dict[str, Any]) -> float:
        walk = self._walk
        assert walk is not None
        info["strategy"] = self.costs.decode(walk.kept, walk.options)
        info["meets_budget"] = walk.total <= self.costs.bound
        if self._deferring:
            return math.nan
        info["evaluation"], reward = self.evaluate(info["strategy"])
        return reward

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Walks inside end without an evaluation: their reward is NaN until `evaluate` gives it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

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
