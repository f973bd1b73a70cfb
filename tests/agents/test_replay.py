import numpy as np
import pytest

from agents.episode import choose_at_random, run_episode
from agents.replay import EpisodeReplay
from tests.agents.toy import ToyWalk


def make_replay(env, seed=0, size=100, baseline_decay=0.9):
    return EpisodeReplay(
        size, env.observation_space, env.action_space, seed=seed, baseline_decay=baseline_decay
    )


def walk(env, seed=0):
    return run_episode(env, choose_at_random(np.random.default_rng(seed)))


def test_final_reward_is_credited_to_every_step():
    env = ToyWalk(layers_count=4)
    replay, episode = make_replay(env), walk(env)
    replay.add_episode(episode)
    assert replay.size() == 4
    np.testing.assert_array_equal(replay.rewards[:4, 0], [np.float32(episode.trial.reward)] * 4)
    np.testing.assert_array_equal(replay.dones[:4, 0], [0, 0, 0, 1])


def test_transitions_hold_what_was_seen_and_the_executed_action():
    env = ToyWalk(layers_count=3)
    replay = make_replay(env)
    episode = run_episode(env, lambda *_: np.array([1, 0.5, -1], np.float32))
    replay.add_episode(episode)
    clamped = np.array([ToyWalk.LIMIT, 0.5, -1], np.float32)
    np.testing.assert_array_equal(replay.actions[:3, 0], [clamped] * 3)
    np.testing.assert_array_equal(replay.observations[:3, 0], episode.observations[:3])
    np.testing.assert_array_equal(replay.next_observations[:3, 0], episode.observations[1:])


def test_sampled_rewards_are_centred_by_a_moving_average_of_batch_means():
    env = ToyWalk(layers_count=2)
    replay = make_replay(env, baseline_decay=0.9)
    replay.add_episode(walk(env))
    replay.rewards[:2] = 1.0
    assert replay.sample(8).rewards.flatten().tolist() == [0.0] * 8  # b = 1
    replay.rewards[:2] = 3.0
    batch = replay.sample(8)  # b = 0.9 * 1 + 0.1 * 3 = 1.2
    assert batch.rewards.shape == (8, 1)
    assert batch.rewards.flatten().tolist() == pytest.approx([1.8] * 8)


def test_batches_depend_on_the_seed_alone():
    env = ToyWalk()
    batches = []
    for noise in (1, 2):
        replay = make_replay(env, seed=4)
        for seed in range(3):
            replay.add_episode(walk(env, seed))
        np.random.seed(noise)  # noqa: NPY002  (the global generator must not matter)
        batches.append(replay.sample(16))
    np.testing.assert_array_equal(batches[0].actions, batches[1].actions)
    assert batches[0].observations.shape == (16, env.layers_count + 3)
    assert batches[0].dones.shape == (16, 1)


def test_replay_forgets_the_oldest_episode():
    env = ToyWalk(layers_count=2)
    replay = make_replay(env, size=4)
    for seed in range(3):
        last = walk(env, seed)
        replay.add_episode(last)
    assert replay.size() == 4
    assert np.float32(last.trial.reward) in replay.rewards
    assert np.float32(walk(env, 0).trial.reward) not in replay.rewards
