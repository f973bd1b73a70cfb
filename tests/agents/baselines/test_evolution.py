import numpy as np

from agents.baselines.evolution import EvolutionSearch, Individual
from tests.agents.baselines.small import PAIRS, optimum, small_env
from tests.agents.toy import ToyWalk


def best_rewards(env, evaluations, seeds=3, **settings):
    return [
        EvolutionSearch(**settings).search(env, evaluations, seed, lambda _: True).best.reward
        for seed in range(seeds)
    ]


def test_evolution_comes_near_a_known_optimum_and_beats_random_actions():
    # A random walk of 6 steps is off by 18 * (1/3 + 0.6^2) = 12.5 on average; the optimum is 0.
    found = best_rewards(ToyWalk(), 300)
    random = best_rewards(ToyWalk(), 300, population=300)  # never full: never a child
    assert np.mean(found) > -1.5
    assert np.mean(found) > np.mean(random) + 2


def test_evolution_comes_near_the_optimum_of_a_small_network(tiny_graph):
    env = small_env(tiny_graph, "bops", 0.15, PAIRS)
    assert np.mean(best_rewards(env, 60)) >= optimum(env) - 0.02


def child(alive, seed=0, **settings):
    searcher = EvolutionSearch(**settings)
    return searcher._child(alive, np.arange(8), np.random.default_rng(seed))


def test_mutation_changes_as_many_layers_as_asked_and_stays_in_the_action_space():
    parent = Individual(np.full((8, 3), 0.99, np.float32), 0.0)
    actions = child([parent], mutated_layers=3, mutation=2.0, crossover=0.0)
    assert (actions != parent.actions).any(1).sum() == 3
    assert np.abs(actions).max() <= 1


def test_crossover_takes_whole_layers_from_either_parent():
    one = Individual(np.full((8, 3), 0.5, np.float32), 0.0)
    two = Individual(np.full((8, 3), -0.5, np.float32), 0.0)
    settings = {"crossover": 1.0, "tournament": 1, "mutated_layers": 1, "mutation": 1e-9}
    children = [child([one, two], seed, **settings).round(4) for seed in range(8)]
    layers = [{tuple(layer.tolist()) for layer in actions} for actions in children]
    assert set.union(*layers) == {(0.5,) * 3, (-0.5,) * 3}
    assert any(len(kinds) == 2 for kinds in layers)


def test_tournament_is_won_by_the_highest_reward():
    weak = Individual(np.full((8, 3), -0.5, np.float32), 0.0)
    strong = Individual(np.full((8, 3), 0.5, np.float32), 1.0)
    actions = child([weak, strong], crossover=0.0, tournament=50, mutation=1e-9)
    np.testing.assert_allclose(actions, 0.5, atol=1e-6)


def test_the_oldest_dies_even_if_it_is_the_best():
    class Worsening(ToyWalk):
        def step(self, action):
            observation, reward, done, truncated, info = super().step(action)
            return observation, reward and -float(len(self.episodes)), done, truncated, info

    env = Worsening(2)
    searcher = EvolutionSearch(warm_start="none", population=2, crossover=0, mutation=1e-9)
    searcher.search(env, 12, 0, lambda _: True)
    # The best is always the older of the two: its child is a copy of it, and then it is gone.
    first = [walk[:, 1].round(4).tolist() for walk in env.episodes]
    assert first[2] == first[0]
    assert first[3] == first[1]
