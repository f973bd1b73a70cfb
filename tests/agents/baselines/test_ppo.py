import numpy as np
import pytest

from agents.baselines.ppo import PPOSearcher, RewardScale, batch_without_rest_of_one
from agents.baselines.random_search import RandomSearch
from tests.agents.toy import ToyWalk

FAST = {"hidden": 16, "epochs": 5, "learning_rate": 1e-2, "episodes_per_update": 8}


def test_ppo_learns_towards_a_known_optimum_and_beats_random_actions():
    def rewards(searcher):
        trials = searcher.search(ToyWalk(2), 64, 0, lambda _: True).trials
        return [trial.reward for trial in trials]

    learned, random = rewards(PPOSearcher(**FAST)), rewards(RandomSearch())
    # A random walk of 2 steps is off by 6 * (1/3 + 0.6^2) = 4.2 on average; the optimum is 0.
    assert np.mean(learned[-15:]) > -2
    assert np.mean(random[-20:]) < -3
    assert max(learned) > max(random)


def test_updates_come_after_every_few_whole_episodes_of_its_own():
    searcher = PPOSearcher(episodes_per_update=3, epochs=1, hidden=4)
    trials = searcher.search(ToyWalk(2), 9, 0, lambda _: True).trials  # two of them warm start
    updated = [trial.index for trial in trials if "critic_loss" in trial.diagnostics]
    assert updated == [5, 8]
    assert all(np.isfinite(trials[4].diagnostics[name]) for name in ("actor_loss", "noise"))


def test_walk_of_one_step_is_learned_from():
    searcher = PPOSearcher(episodes_per_update=1, epochs=2, hidden=4, warm_start="none")
    trials = searcher.search(ToyWalk(1), 4, 0, lambda _: True).trials
    assert all(np.isfinite(trial.diagnostics["actor_loss"]) for trial in trials)


@pytest.mark.parametrize(
    ("steps", "batch", "size"), [(8, 64, 8), (65, 64, 65), (128, 64, 64), (7, 3, 4), (1, 64, 1)]
)
def test_no_batch_holds_a_single_step(steps, batch, size):
    assert batch_without_rest_of_one(steps, batch) == size


def test_rewards_are_normalised_by_all_so_far():
    scale = RewardScale()
    assert scale.normalised(3.0) == 0
    assert scale.normalised(5.0) == 1  # mean 4, standard deviation 1
    assert scale.normalised(4.0) == 0
    assert RewardScale([2.0]).normalised(2.0) == 0
