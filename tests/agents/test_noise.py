import numpy as np
import pytest
from scipy.stats import truncnorm

from agents.noise import NoiseSchedule, decay_to, truncated_normal


def test_draws_stay_within_the_bounds_even_for_centres_on_a_bound():
    mean = np.array([-1, 0, 1] * 1000, np.float32)
    draws = truncated_normal(mean, 1.0, np.random.default_rng(0))
    assert draws.dtype == np.float32
    assert draws.min() >= -1
    assert draws.max() <= 1


def test_draws_follow_the_truncated_normal_distribution():
    draws = truncated_normal(np.full(20_000, 0.5, np.float32), 0.7, np.random.default_rng(1))
    expected = truncnorm((-1 - 0.5) / 0.7, (1 - 0.5) / 0.7, loc=0.5, scale=0.7)
    assert draws.mean() == pytest.approx(expected.mean(), abs=0.015)
    assert draws.std() == pytest.approx(expected.std(), abs=0.015)


def test_small_noise_stays_near_its_centre():
    mean = np.array([-0.9, 0.2, 1.0], np.float32)
    draws = truncated_normal(mean, 1e-3, np.random.default_rng(2))
    np.testing.assert_allclose(draws, mean, atol=6e-3)


def test_same_generator_seed_draws_the_same_noise():
    mean = np.zeros(5, np.float32)
    one, two = (truncated_normal(mean, 1.0, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_noise_shrinks_by_the_same_factor_every_episode():
    schedule = NoiseSchedule(initial=0.8, decay=0.5)
    assert [schedule.sigma(k) for k in range(4)] == [0.8, 0.4, 0.2, 0.1]


@pytest.mark.parametrize("episodes", [2, 45, 300])
def test_derived_decay_ends_at_the_final_fraction(episodes):
    schedule = NoiseSchedule(2.0, decay_to(0.05, episodes))
    assert schedule.sigma(episodes - 1) == pytest.approx(0.1)


def test_derived_decay_is_defined_without_any_learning_episode():
    assert decay_to(0.05, 0) == pytest.approx(0.05)
