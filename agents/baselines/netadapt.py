"""NetAdapt: lower the cost step by step, each time by the change that keeps the most reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agents.baselines.proposals import Proposals
from agents.episode import check_search, checked_reward
from agents.settings import check_settings, count
from agents.trial import OnTrial, SearchResult, Trial
from amc.cost.model import WalkCosts

if TYPE_CHECKING:
    from envs.compression import CompressionEnv


@dataclass(frozen=True)
class NetAdaptSearch:
    """Greedy descent from the original network to the budget (Yang et al. 2018, Algorithm 1).

    Every step lowers the cost by the same amount. For every layer's preserve ratio, and for its
    bits where several are on offer, the smallest change that saves it is a proposal; the proposal
    with the highest reward goes on. Costs are looked up, as in section 3.3.

    The paper evaluates every proposal; with few evaluations the steps would be too large for a
    single layer. So a step evaluates only ``proposals`` of them, those with the smallest estimated
    error per cost saved, and there are ``evaluations / proposals`` steps. What is left after a
    descent pays for further ones, each in twice as many steps; what was evaluated before costs
    nothing. The search ends early only when the smallest steps lead to nothing new.

    The paper's fine-tuning is left out: evaluations repair a candidate as for every searcher.

    Trials on the way lie above the budget, and say so.

    Attributes:
        proposals: Evaluations per step.
    """

    name: ClassVar[str] = "netadapt"

    proposals: int = count(8)

    def __post_init__(self) -> None:
        check_settings(self.name, self)

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate ``evaluations`` strategies, fewer if there are no more; draws no numbers.

        Raises:
            ConfigError: ``evaluations`` is below 1 or ``seed`` is negative.
            EvaluationError: A reward is not finite.
        """
        check_search(evaluations, seed)
        run = _Run(env, evaluations, on_trial)
        steps, before = max(1, evaluations // self.proposals), -1
        while run.left and (before < len(run.trials) or steps <= run.finest):
            before = len(run.trials)
            run.descend(steps)
            steps *= 2
        return SearchResult(self.name, run.trials)


class _Run:
    """One search under way: what was evaluated, and how many evaluations are left.

    Attributes:
        finest: So many steps are enough for each to change one unit by one choice.
    """

    def __init__(self, env: CompressionEnv, evaluations: int, on_trial: OnTrial) -> None:
        self._env, self._costs, self._on_trial = env, env.costs, on_trial
        self._proposals = Proposals(env.costs, env.errors)
        self.finest = self._proposals.choices
        self._known: dict[str, float] = {}  # strategy -> reward
        self.left, self.trials = evaluations, list[Trial]()

    def descend(self, steps: int) -> None:
        """Go from the original to the budget, as long as evaluations are left."""
        now, bound = self._proposals.original(), self._costs.bound
        if now.total <= bound:  # the most precise bits on offer already meet it
            self._best([now], 1)
        for step in range(steps, 0, -1):
            if now.total <= bound or not self.left:
                return
            target = bound + (now.total - bound) * (step - 1) / step
            now = self._best(self._proposals.towards(now, target), max(1, self.left // step))

    def _best(self, proposed: list[WalkCosts], share: int) -> WalkCosts:
        """The proposal with the highest reward, of the known ones and ``share`` new ones."""
        self._foresee(proposed, min(share, self.left))
        rewards: dict[int, float] = {}
        for index, reached in enumerate(proposed):
            strategy = self._costs.decode(reached.kept, reached.options)
            key = strategy.to_json()
            if key not in self._known:
                if not share or not self.left:
                    continue
                share -= 1
                evaluation, reward = self._env.evaluate(strategy)
                number = len(self.trials) + 1
                trial = Trial(
                    index=number,
                    strategy=strategy,
                    evaluation=evaluation,
                    reward=checked_reward(reward, number, evaluation),
                    meets_budget=reached.total <= self._costs.bound,
                )
                self._note(key, trial)
            rewards[index] = self._known[key]
        return proposed[max(rewards, key=rewards.__getitem__)]

    def _foresee(self, proposed: list[WalkCosts], share: int) -> None:
        """Have the new ones evaluated side by side, where that can be done."""
        if self._env.foresee is not None:
            strategies = [self._costs.decode(walk.kept, walk.options) for walk in proposed]
            new = [one for one in strategies if one.to_json() not in self._known]
            self._env.foresee(new[:share])

    def _note(self, key: str, trial: Trial) -> None:
        self.trials.append(trial)
        self._known[key] = trial.reward
        self.left -= 1
        if not self._on_trial(trial):
            self.left = 0
