"""Who ranks the last candidates: repaired, by the whole search split; the winner is tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from amc.compress.network import CompressedNetwork
from amc.problem.evaluate import Evaluation, Evaluator
from amc.problem.task import CompressionTask
from amc.strategy import Strategy
from envs.reward import Reward, outcome_of


@dataclass(frozen=True)
class Finalist:
    """A kept strategy with its repaired network and its evaluation on the whole search split.

    Attributes:
        file_bytes: Of its packed file, where that is what is budgeted.
    """

    strategy: Strategy
    network: CompressedNetwork
    evaluation: Evaluation
    file_bytes: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What the jury found of a strategy, without its network.

    Attributes:
        evaluation: On the whole search split, repaired.
        reward: For it.
        test: Of the same network on the test split.
    """

    strategy: Strategy
    evaluation: Evaluation
    reward: float
    test: Evaluation


class Jury:
    """Repairs candidates, ranks them by their reward on the whole search split, tests the winner.

    The searches of a task can share one: it remembers the numbers of the strategies that it met,
    not their networks.
    """

    def __init__(self, task: CompressionTask, reward: Reward) -> None:
        self._task, self._reward = task, reward
        self.judge = task.evaluator(task.data.search)
        self._judged: dict[str, Evaluation] = {}
        self._tested: dict[str, Evaluation] = {}

    @cached_property
    def original(self) -> Evaluation:
        """The original network's, on the whole search split."""
        costs = self._task.costs
        priced = {**self._task.original.costs, costs.budget.metric: costs.original}
        return replace(self.judge.original, costs=priced)

    @cached_property
    def test(self) -> Evaluator:
        """Evaluates on the test split."""
        return self._task.evaluator(self._task.data.test)

    def finalist(self, strategy: Strategy) -> Finalist:
        """Repair the network of a strategy and judge it."""
        network = self._task.finish(strategy)
        found = replace(self.judge(network.module), costs=self._task.strategy_costs(strategy))
        return Finalist(strategy, network, found, self._task.file_bytes(network))

    def reward(self, strategy: Strategy, evaluation: Evaluation) -> float:
        """What is ranked by.

        Args:
            evaluation: On the whole search split.

        Raises:
            ConfigError: The reward is no number.
        """
        costs = self._task.costs
        cost = evaluation.costs[costs.budget.metric]
        return self._reward(outcome_of(costs, strategy, cost, evaluation, self.original))

    def verdict(self, strategies: Sequence[Strategy]) -> Verdict:
        """The best of some strategies, tested."""
        keys = [strategy.to_json() for strategy in strategies]
        fresh = {
            key: self.finalist(strategy)
            for key, strategy in zip(keys, strategies, strict=True)
            if key not in self._judged
        }
        self._judged |= {key: finalist.evaluation for key, finalist in fresh.items()}
        key, best = max(
            zip(keys, strategies, strict=True),
            key=lambda pair: self.reward(pair[1], self._judged[pair[0]]),
        )
        if key not in self._tested:
            winner = fresh.get(key) or self.finalist(best)
            self._tested[key] = self.test(winner.network.module)
        found = self._judged[key]
        return Verdict(best, found, self.reward(best, found), self._tested[key])
