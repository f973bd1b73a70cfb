import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import amc
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import ConfigError
from amc.strategy import FLOAT
from envs.compression import CompressionEnv
from envs.make import make_env
from envs.render import SIZE, draw_walk
from envs.reward import DEFAULT_REWARD
from tests.conftest import random_images
from tests.envs.made_up import SCORE

OPTIONS = {"budget": {"metric": "macs", "fraction": 0.6}, "search_images": 20}


@pytest.fixture
def costs(tiny_graph):
    return CostModel(tiny_graph, choices_for(tiny_graph, (FLOAT,)), Budget("macs", fraction=0.6))


def _env(costs, render_mode="rgb_array", reward=DEFAULT_REWARD):
    return CompressionEnv(costs, lambda _: SCORE, SCORE, reward, render_mode=render_mode)


def _decided(picture):
    """Pixels in the colour of what is decided."""
    return int((picture == (0x00, 0x72, 0xB2)).all(-1).sum())


def test_a_picture_of_every_step_shows_ever_more_that_is_decided(costs):
    env = _env(costs)
    env.reset()
    pictures = [env.render()]
    for _ in range(env.layers_count):
        env.step(np.ones(3, np.float32))
        pictures.append(env.render())
    width, height = SIZE
    assert {(p.shape, p.dtype) for p in pictures} == {((height, width, 3), np.dtype("uint8"))}
    areas = [_decided(picture) for picture in pictures]
    assert areas == sorted(areas)
    assert len(set(areas)) == len(areas)


def test_the_same_walk_gives_the_same_picture(costs):
    first, second = (draw_walk(costs, costs.start(), 0) for _ in range(2))
    assert (first == second).all()


def test_a_walk_that_exceeds_the_budget_is_drawn_too(costs):
    env = _env(costs, reward="mnasnet")
    env.reset()
    for _ in range(env.layers_count):
        env.step(np.ones(3, np.float32))
    assert env._walk.total > env.bound
    assert env.render().shape[-1] == 3


def test_without_a_render_mode_nothing_is_drawn(costs):
    env = _env(costs, None)
    env.reset()
    with pytest.warns(UserWarning, match="draws nothing without render_mode='rgb_array'"):
        assert env.render() is None


def test_a_picture_needs_a_walk(costs):
    with pytest.raises(gymnasium.error.ResetNeeded, match="there is no walk yet"):
        _env(costs).render()


def test_an_unknown_render_mode_is_refused(costs):
    with pytest.raises(ConfigError, match="must be 'rgb_array' or None, got 'human'"):
        _env(costs, "human")


# -- several at a time -----------------------------------------------------------------------------


def _walk_all(vector, reset, steps):
    """Rewards and infos of the last step of a walk in all environments at once."""
    reset()
    for _ in range(steps):
        outcome = vector.step(np.ones((2, 3), np.float32))
    return outcome


def test_gymnasium_makes_several_by_name(tiny_net):
    assert amc.__version__  # importing amc registers the name
    several = gymnasium.make_vec(
        "amc/Compression-v0",
        num_envs=2,
        vectorization_mode="sync",
        network=tiny_net,
        data=random_images(),
        **OPTIONS,
    )
    _, rewards, terminated, _, infos = _walk_all(several, several.reset, 4)
    assert terminated.all()
    assert rewards[0] == rewards[1] < 0
    assert infos["meets_budget"].all()


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_stable_baselines_runs_several(tiny_net, kind):
    options = {"start_method": "fork"} if kind is SubprocVecEnv else {}
    several = kind([lambda: make_env(tiny_net, random_images(), **OPTIONS)] * 2, **options)
    try:
        _, rewards, done, infos = _walk_all(several, several.reset, 4)
    finally:
        several.close()
    assert done.all()
    assert rewards[0] == rewards[1] < 0
    assert all(info["meets_budget"] for info in infos)
