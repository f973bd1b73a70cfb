import numpy as np
import pytest

from agents.episode import check_search, collect_trials, follow, run_episode
from amc.errors import ConfigError, EvaluationError
from tests.agents.toy import ToyWalk

HIGH = np.array([1, 0, 0], np.float32)


def test_episode_records_one_action_per_layer_and_the_last_observation():
    env = ToyWalk(layers_count=3)
    episode = run_episode(env, follow([HIGH, 0 * HIGH, -HIGH]), index=7)
    assert episode.steps == 3
    assert episode.observations.shape == (4, 6)
    np.testing.assert_array_equal(episode.actions[:, 0], np.float32([0.9, 0, -1]))
    assert episode.trial.index == 7
    assert episode.trial.diagnostics == {"clamped_steps": 1.0}


def test_reward_of_the_trial_is_the_last_steps_reward():
    env = ToyWalk(layers_count=2, target=0.5)  # targets (0.5, -0.5, 0.5) at both steps
    trial = run_episode(env, follow([np.zeros(3, np.float32)] * 2)).trial
    assert trial.reward == pytest.approx(-(2 * 3 * 0.5**2))
    assert trial.evaluation.accuracy == trial.reward


def test_a_reward_that_is_not_finite_is_refused():
    env = ToyWalk(layers_count=2, target=float("nan"))
    with pytest.raises(EvaluationError, match="evaluation 3 must be a finite number, got nan"):
        run_episode(env, follow([HIGH, HIGH]), index=3)


def test_trial_says_whether_its_walk_met_the_budget():
    class Unbounded(ToyWalk):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info | {"meets_budget": False}

    assert run_episode(ToyWalk(1), follow([HIGH])).trial.meets_budget
    assert not run_episode(Unbounded(1), follow([HIGH])).trial.meets_budget


def test_environment_is_seeded_once():
    seeds = []

    class Recorded(ToyWalk):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    walk = follow([HIGH] * 2)
    collect_trials(Recorded(2), 3, 11, lambda _: True, lambda _: walk)
    assert seeds == [11, None, None]


def test_what_is_learned_is_added_to_the_diagnostics():
    walk = follow([HIGH] * 2)
    trials = collect_trials(
        ToyWalk(2), 1, 0, lambda _: True, lambda _: walk, lambda _: {"noise": 0.5}
    )
    assert trials[0].diagnostics == {"clamped_steps": 2.0, "noise": 0.5}


def test_search_without_an_evaluation_is_refused():
    with pytest.raises(ConfigError, match="evaluations=0"):
        check_search(0, 0)


def test_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="seed=-1"):
        check_search(1, -1)
