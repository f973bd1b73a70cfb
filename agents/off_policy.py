"""What DDPG, TD3 and SAC share: warm-up, exploration, replay, and Stable-Baselines3 beneath."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import update_learning_rate

from agents.compute import AgentCompute, restore_stream
from agents.episode import (
    WARM_STARTS,
    Array,
    BegunWalk,
    Choose,
    Episode,
    Walk,
    anchored,
    check_search,
    collect_trials,
    follow,
    warm_walks,
)
from agents.noise import NoiseSchedule, truncated_normal
from agents.policy import Policy
from agents.replay import EpisodeReplay
from agents.settings import check_settings, choice, count, is_number, number, setting
from agents.snapshot import restore_snapshot, take_snapshot
from agents.state import AgentState, Checkpoints, Forgetful, generator_state, restore_generator
from agents.trial import OnTrial, SearchResult, Trial
from agents.trust import NO_PRIOR, prior_of
from amc.errors import ConfigError
from amc.utils.documents import NUMBER, SWITCH, WHOLE, is_count, list_of, or_null

if TYPE_CHECKING:
    from amc.strategy import Strategy
    from envs.compression import CompressionEnv

# Diagnostic -> what Stable-Baselines3 records it as.
RECORDED = {
    "actor_loss": "train/actor_loss",
    "critic_loss": "train/critic_loss",
    "entropy_weight": "train/ent_coef",
}


_ESTIMATED = ("program", "all")  # of the warm starts: they allocate by estimates


class SeparateRates(OffPolicyAlgorithm):
    """An algorithm whose optimizers keep learning rates of their own.

    Stable-Baselines3 gives one rate to all of them at every update.

    Attributes:
        rates: Learning rates of actor, critic and, in SAC, the entropy's weight.
    """

    rates: tuple[float, ...]

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        ordered = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer, rate in zip(ordered, self.rates, strict=False):
            update_learning_rate(optimizer, rate)


def _is_warmup(value: Any) -> bool:
    return is_count(value) or (is_number(value) and 0 <= value < 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_hidden(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(is_count, value))


@dataclass(frozen=True)
class OffPolicySearcher(ABC):
    """An actor-critic search; the defaults are AMC's (He et al. 2018, and its released code).

    The warm-up walks to the strategies of ``warm_start`` first (to all of them, even beyond
    ``warmup``: the result is never worse than those), then acts at random. Learning starts with
    its last episode: after every episode come as many updates as it had steps.

    Four things are not AMC's, and each can be switched off. Actions are departures from the
    program's advice (``anchor``), so that an untrained actor allocates as the program does, and
    what is learned is where its estimates are wrong. Noise touches a part of the steps only
    (``noise_share``): of fifty small departures at once the bad ones hide the good. Some
    episodes start from the best walk so far instead of the actor's (``elite_share``), as in
    evolutionary reinforcement learning (Khadka & Tumer 2018). And most walk to where the rewards
    so far promise most (``belief_share``): the actor learns from these walks too.

    Attributes:
        warm_start: Of `agents.episode.WARM_STARTS`.
        anchor: "program" (`envs.prior.PriorEnv`) or "none".
        prior: What corrects the estimated errors before any evaluation: "shipped" (the policy that
            comes with amc), "none", or the folder of a training (`agents.trust`).
        wander: Standard deviation of the warm-up's departures from the prior action.
        noise_share: Fraction of an episode's steps that noise touches.
        elite_share: Fraction of the learning episodes that explore around the best walk so far.
        belief_share: Fraction of all episodes that walk to the strategy of most expected
            improvement, as the rewards so far make errors believed (`envs.surrogate`).
        warmup: Episodes before learning: a number, or a fraction (below 1) of the evaluations.
        hidden: Units of the hidden layers of actor and critic.
        actor_lr, critic_lr: Learning rates (Adam).
        gamma: Discount per step; 1 as every walk has the same number of steps.
        tau: Step of the target networks towards the learned ones, per update.
        batch_size: Transitions per update.
        replay_episodes: Episodes that the replay holds; it forgets older ones.
        baseline_decay: Weight of the past in the moving reward baseline.
        updates_per_step: Updates per step of an episode.
    """

    name: ClassVar[str]

    warm_start: str = choice("all", *WARM_STARTS)
    anchor: str = choice("program", "program", "none")
    prior: str = setting(NO_PRIOR, _is_text, "shipped, none, or the folder of a training")
    wander: float = number(0.3, 0, above=True)
    noise_share: float = number(0.3, 0, 1, above=True)
    elite_share: float = number(0.15, 0, 1)
    belief_share: float = number(0.7, 0, 1)
    warmup: float = setting(
        0.25, _is_warmup, "a number of episodes, or a fraction of the evaluations in [0, 1)"
    )
    hidden: Sequence[int] = setting((300, 300), _is_hidden, "a list of whole numbers, not empty")
    actor_lr: float = number(1e-4, 0, 1, above=True)
    critic_lr: float = number(1e-3, 0, 1, above=True)
    gamma: float = number(1.0, 0, 1)
    tau: float = number(0.01, 0, 1, above=True)
    batch_size: int = count(64)
    replay_episodes: int = count(100)
    baseline_decay: float = number(0.95, 0, 1)
    updates_per_step: int = count(1)

    def __post_init__(self) -> None:
        if isinstance(self.hidden, list):  # as a configuration file gives it
            object.__setattr__(self, "hidden", tuple(self.hidden))
        check_settings(self.name, self)
        if self.elite_share + self.belief_share > 1:
            raise ConfigError(
                f"agent.elite_share and agent.belief_share of {self.name} are parts of the same "
                f"episodes: together at most 1, got {self.elite_share} and {self.belief_share}."
            )

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate exactly ``evaluations`` strategies, fewer only if ``on_trial`` says so.

        Raises:
            ConfigError: ``evaluations`` is below 1 or ``seed`` is negative.
        """
        return self.search_on(env, evaluations, seed, on_trial, Forgetful())

    def search_on(
        self,
        env: CompressionEnv,
        evaluations: int,
        seed: int,
        on_trial: OnTrial,
        checkpoints: Checkpoints,
    ) -> SearchResult:
        """As `search`, but go on where the checkpoints end; every trial is reported again.

        Raises:
            ConfigError: As `search`.
        """
        check_search(evaluations, seed)
        run = _Run(self, anchored(self._believed(env), self.anchor), evaluations, seed)
        past, state = checkpoints.load()
        begun = [] if state is None else run.restore(state, past)
        trials = collect_trials(
            run.env,
            evaluations,
            seed,
            on_trial,
            run.begin,
            run.learn,
            past=past,
            begun=begun,
            after=lambda trial, under_way: checkpoints.note(trial, lambda: run.state(under_way)),
            pending=run.expect,
        )
        return SearchResult(self.name, trials, run.policy())

    def _believed(self, env: CompressionEnv) -> CompressionEnv:
        """The environment, its estimates corrected by what other networks taught."""
        policy = prior_of(self.prior) if self._goes_by_estimates else None
        return env if policy is None else env.corrected(policy.correct)

    @property
    def _goes_by_estimates(self) -> bool:
        return self.anchor == "program" or self.belief_share > 0 or self.warm_start in _ESTIMATED

    @property
    def prior_id(self) -> str | None:
        """Of the policy that it begins with; None: of none."""
        policy = prior_of(self.prior) if self._goes_by_estimates else None
        return None if policy is None else policy.id

    @abstractmethod
    def build(self, arguments: Mapping[str, Any]) -> SeparateRates:
        """The untrained algorithm, from the constructor arguments that all of them share."""

    @abstractmethod
    def actor_layers(self, actor: Any) -> list[torch.nn.Linear]:
        """The actor's linear layers from the observation to the action, before the tanh."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates in the order in which the algorithm holds its optimizers."""
        return self.actor_lr, self.critic_lr

    def noise(self, episodes: int) -> NoiseSchedule | None:
        """Noise on the actions of the learning episodes; None if the actor is itself random."""
        return None

    def warmup_episodes(self, evaluations: int) -> int:
        """Episodes of the warm-up in a search of so many evaluations."""
        fraction = 0 <= self.warmup < 1
        return round(self.warmup * evaluations) if fraction else int(self.warmup)


class _Run:
    """One search under way: the model, its replay, and where in the schedule it is."""

    def __init__(
        self, searcher: OffPolicySearcher, env: CompressionEnv, evaluations: int, seed: int
    ) -> None:
        explore, replay, compute = map(int, np.random.SeedSequence(seed).generate_state(3))
        self._searcher, self.env = searcher, env
        self._rng = np.random.default_rng(explore)
        self._compute = AgentCompute(compute)
        self._first = warm_walks(env, searcher.warm_start)
        self._warmup = max(len(self._first), searcher.warmup_episodes(evaluations))
        self._noise = searcher.noise(evaluations - self._warmup)
        self._logger = Logger(folder=None, output_formats=[])
        self._learned = False
        self._elite: tuple[float, Array] | None = None  # reward and actions, (steps, parts)
        self._surrogate = env.surrogate() if searcher.belief_share else None
        with self._compute.running():
            self._model = searcher.build(_shared_arguments(searcher, env, replay))
        self._model.rates = searcher.rates
        self._model.set_logger(self._logger)

    def begin(self, index: int) -> Choose:
        """How episode ``index``, from 1, chooses its actions."""
        if index <= len(self._first):
            return self._first[index - 1]
        part = self._rng.random()
        if self._surrogate is not None and part < self._searcher.belief_share:
            return follow(self.env.encode(self._surrogate.propose(self._rng)))
        if index <= self._warmup:
            return self._wander
        sigma = self._sigma(index)
        if self._elite is not None and part >= 1 - self._searcher.elite_share:
            actions = self._elite[1]
            spread = self._searcher.wander if sigma is None else sigma
            return lambda step, _: self._disturb(actions[step], spread)
        return lambda _, observation: self._disturb(self._act(observation), sigma)

    def expect(self, strategy: Strategy) -> None:
        """Propose nothing like a strategy that is being evaluated."""
        if self._surrogate is not None:
            self._surrogate.expect(strategy)

    def learn(self, episode: Episode) -> dict[str, float]:
        """Store the episode; once the warm-up is over, update. Returns diagnostics."""
        self._replay.add_episode(episode)
        self._believe(episode.trial)
        if self._elite is None or episode.trial.reward > self._elite[0]:
            self._elite = episode.trial.reward, episode.actions
        index = episode.trial.index
        diagnostics: dict[str, float] = {}
        if index >= self._warmup:
            diagnostics = self._update(episode.steps * self._searcher.updates_per_step)
        sigma = self._sigma(index)
        if sigma is not None:
            diagnostics["noise"] = sigma
        return diagnostics | {"agent_seconds": self._compute.take_seconds()}

    def policy(self) -> Policy | None:
        """The actor as it is now; None before the first update."""
        if not self._learned:
            return None
        layers = self._searcher.actor_layers(self._model.actor)
        return Policy.from_modules(
            self._searcher.name,
            self.env.observation_names,
            layers,
            self._searcher.anchor,
            self.env.action_names,
        )

    def state(self, under_way: Sequence[Walk] = ()) -> AgentState:
        """All that the next episode depends on, beside the searcher's settings and the seed.

        Args:
            under_way: Walks that are not learned from yet.
        """
        parts = {"model": take_snapshot(self._model), "replay": self._replay.state()}
        tensors = {"stream": self._compute.stream}
        if self._elite is not None:
            tensors["elite"] = torch.from_numpy(self._elite[1])
        numbers: dict[str, Any] = {"rng": generator_state(self._rng), "learned": self._learned}
        numbers["elite"] = None if self._elite is None else self._elite[0]
        numbers["bound"] = self.env.bound
        if under_way:
            tensors["walks"] = torch.from_numpy(np.stack([walk.actions for walk in under_way]))
            numbers["clamped"] = [walk.clamped for walk in under_way]
        for name, part in parts.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in part.tensors.items()}
            numbers[name] = part.numbers
        return AgentState(tensors, numbers)

    def restore(self, state: AgentState, past: Sequence[Trial] = ()) -> list[BegunWalk]:
        """Go on from a `state` of a run with the same settings and seed, after these trials.

        Where the run aimed at another bound, what is learnt holds; the best walk so far is the
        best of those trials that meet this one, and what was under way is given up.

        Returns:
            The walks that were under way.

        Raises:
            AmcError: The state is of another agent.
        """
        for trial in past:
            self._believe(trial)
        restore_snapshot(self._model, state.part("model"))
        self._replay.restore(state.part("replay"))
        restore_stream(self._compute, state)
        restore_generator(self._rng, state, "rng")
        self._learned = state.number("learned", SWITCH)
        bound, elite = self.env.bound, state.number("elite", or_null(NUMBER))
        if state.numbers.get("bound", bound) != bound:
            self._elite = self._best_walk(past)
            return []
        if elite is not None:
            space = self._model.action_space.shape
            assert space is not None
            double = state.tensors.get("elite", torch.empty(0)).dtype == torch.float64
            dtype = torch.float64 if double else torch.float32  # as walked, or as encoded
            walk = torch.zeros(self.env.layers_count, *space, dtype=dtype)
            self._elite = elite, state.tensor("elite", walk).numpy()
        return self._under_way(state)

    def _under_way(self, state: AgentState) -> list[BegunWalk]:
        """The walks of a `state` that are not learned from yet."""
        if "walks" not in state.tensors:
            return []
        clamped = state.number("clamped", list_of(WHOLE))
        shape = self.env.layers_count, len(self.env.action_names)
        walks = state.tensor("walks", torch.zeros(len(clamped), *shape)).numpy()
        if not 0 < len(walks) < self.env.proposals:
            raise state.misfit(
                f"does not fit this search: {len(walks)} walks are under way, of "
                f"{self.env.proposals} at once"
            )
        return [BegunWalk(*one) for one in zip(walks, clamped, strict=True)]

    def _best_walk(self, trials: Sequence[Trial]) -> tuple[float, Array] | None:
        within = [trial for trial in trials if trial.meets_budget]
        if not within:
            return None
        best = max(within, key=lambda trial: trial.reward)
        return best.reward, np.stack(self.env.encode(best.strategy))

    @property
    def _replay(self) -> EpisodeReplay:
        replay = self._model.replay_buffer
        assert isinstance(replay, EpisodeReplay)
        return replay

    def _believe(self, trial: Trial) -> None:
        if self._surrogate is not None:
            self._surrogate.note(trial.strategy, trial.reward)

    def _update(self, updates: int) -> dict[str, float]:
        with self._compute.running():
            self._model.train(gradient_steps=updates, batch_size=self._searcher.batch_size)
        self._learned = True
        recorded = self._logger.name_to_value
        losses = {name: float(recorded[key]) for name, key in RECORDED.items() if key in recorded}
        self._logger.dump()  # has no outputs: forgets what was recorded
        return losses

    def _act(self, observation: Array) -> Array:
        with self._compute.running():
            action, _ = self._model.predict(observation)
        return action

    def _wander(self, step: int, observation: Array) -> Array:
        """Before learning: at random, or around the prior action where that is 0."""
        if self._searcher.anchor == "none":
            return self._rng.uniform(-1, 1, len(self.env.action_names)).astype(np.float32)
        nowhere = np.zeros(len(self.env.action_names), np.float32)
        return self._disturb(nowhere, self._searcher.wander)

    def _disturb(self, action: Array, sigma: float | None) -> Array:
        """Noise on one step, or none: all of a step's actions or none of them."""
        if sigma is None or self._rng.random() >= self._searcher.noise_share:
            return action
        return truncated_normal(np.clip(action, -1, 1), sigma, self._rng)

    def _sigma(self, index: int) -> float | None:
        learning = self._noise is not None and index > self._warmup
        return self._noise.sigma(index - self._warmup - 1) if self._noise and learning else None


def _shared_arguments(
    searcher: OffPolicySearcher, env: CompressionEnv, seed: int
) -> dict[str, Any]:
    return {
        "policy": "MlpPolicy",
        "env": env,
        "learning_rate": searcher.actor_lr,
        "buffer_size": searcher.replay_episodes * env.layers_count,
        "batch_size": searcher.batch_size,
        "tau": searcher.tau,
        "gamma": searcher.gamma,
        "replay_buffer_class": EpisodeReplay,
        "replay_buffer_kwargs": {"seed": seed, "baseline_decay": searcher.baseline_decay},
        "policy_kwargs": {
            "net_arch": list(searcher.hidden),
            "optimizer_kwargs": {"fused": True},  # one pass over a weight instead of eight
        },
        "device": "cpu",  # too small for a GPU to be faster
    }


def linear_layers(module: torch.nn.Module) -> list[torch.nn.Linear]:
    """The linear layers of a module, in order."""
    return [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
