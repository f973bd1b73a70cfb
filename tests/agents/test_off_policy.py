import math

import numpy as np
import pytest
import torch

from agents.episode import follow, run_episode
from agents.off_policy import SeparateRates, _Run
from agents.searcher import build_searcher
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import ConfigError
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from envs.surrogate import Surrogate
from tests.agents.toy import ToyWalk
from tests.conftest import classified
from tests.envs.made_up import SCORE, error_of, losing_env, made_up_errors

LEARNERS = ("ddpg", "td3", "sac")
# A toy walk has no advice to depart from.
PLAIN = {"anchor": "none", "warm_start": "uniform", "belief_share": 0}
SMALL = {"hidden": [16], "batch_size": 8, **PLAIN}


def search(name, evaluations=8, seed=0, env=None, on_trial=lambda _: True, **settings):
    searcher = build_searcher(name, **SMALL | settings)
    return searcher.search(env or ToyWalk(layers_count=3), evaluations, seed, on_trial)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("evaluations", [1, 2, 9])
def test_every_evaluation_is_counted(name, evaluations):
    env = ToyWalk(layers_count=3)
    result = search(name, evaluations, env=env)
    assert result.searcher == name
    assert [t.index for t in result.trials] == list(range(1, evaluations + 1))
    assert len(env.episodes) == evaluations


@pytest.mark.parametrize("name", LEARNERS)
def test_search_stops_when_told_and_keeps_what_it_has(name):
    env = ToyWalk(layers_count=3)
    result = search(name, 50, env=env, on_trial=lambda trial: trial.index < 5)
    assert len(result.trials) == len(env.episodes) == 5


def test_search_without_evaluations_is_refused():
    with pytest.raises(ConfigError, match="evaluations=0"):
        search("ddpg", 0)


@pytest.mark.parametrize("name", LEARNERS)
def test_same_seed_gives_the_same_trials_whatever_was_drawn_before(name):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (the global generators must not matter)
    first = search(name, seed=5)
    torch.rand(100)
    np.random.rand(7)  # noqa: NPY002
    second = search(name, seed=5)
    assert first.trials == second.trials
    for (weight, bias), (weight2, bias2) in zip(
        first.policy.layers, second.policy.layers, strict=True
    ):
        assert torch.equal(weight, weight2)
        assert torch.equal(bias, bias2)


def test_same_seed_gives_the_same_trials_when_evaluations_draw_numbers():
    class Drawing(ToyWalk):
        def step(self, action):
            torch.rand(3)
            return super().step(action)

    assert search("sac", seed=5).trials == search("sac", seed=5, env=Drawing(3)).trials


def test_another_seed_gives_other_trials():
    assert search("ddpg", seed=1).trials[4:] != search("ddpg", seed=2).trials[4:]


def test_search_leaves_the_global_random_streams_alone():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    state, numbers = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    search("sac")
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002


def test_evaluation_runs_on_all_threads():
    class Watching(ToyWalk):
        threads: set[int] = set()  # noqa: RUF012  (one test, one class)

        def step(self, action):
            self.threads.add(torch.get_num_threads())
            return super().step(action)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        search("ddpg", env=Watching(3))
    finally:
        torch.set_num_threads(before)
    assert Watching.threads == {2}


def test_search_starts_with_every_uniform_strategy():
    result = search("ddpg", 8, warmup=0)
    ratios = [list(t.strategy.preserve_ratio.values()) for t in result.trials]
    assert ratios[0] == pytest.approx([0.25] * 3)
    assert ratios[1] == pytest.approx([0.5] * 3)
    assert ratios[2] != pytest.approx([ratios[2][0]] * 3)


@pytest.mark.parametrize(
    ("warm_start", "ratios"),
    [("none", []), ("uniform", [0.25, 0.5]), ("program", [0.75]), ("all", [0.25, 0.5, 0.75])],
)
def test_search_starts_with_the_strategies_of_its_warm_start(warm_start, ratios):
    result = search("ddpg", 5, warmup=0, warm_start=warm_start)
    first = [list(t.strategy.preserve_ratio.values()) for t in result.trials]
    for found, ratio in zip(first, ratios, strict=False):
        assert found == pytest.approx([ratio] * 3)
    assert first[len(ratios)] != pytest.approx([first[len(ratios)][0]] * 3)


def test_warm_start_is_walked_to_its_end_even_beyond_the_warm_up():
    learned = [
        t.index
        for t in search("ddpg", 6, warmup=1, warm_start="all").trials
        if "critic_loss" in t.diagnostics
    ]
    assert learned == [3, 4, 5, 6]


def test_learning_starts_with_the_last_episode_of_the_warm_up():
    result = search("ddpg", 8, warmup=5, warm_start="none")
    assert [t.index for t in result.trials if "critic_loss" in t.diagnostics] == [5, 6, 7, 8]
    assert [t.index for t in result.trials if "noise" in t.diagnostics] == [6, 7, 8]


def test_search_that_ends_in_its_warm_up_has_no_policy():
    assert search("ddpg", 4, warmup=5).policy is None


def test_noise_decays_from_its_initial_to_its_final_value():
    result = search("ddpg", 8, warmup=5, noise_initial=0.8, noise_final=0.25)
    noise = [t.diagnostics["noise"] for t in result.trials[5:]]
    assert noise == pytest.approx([0.8, 0.4, 0.2])


def test_given_decay_is_used_as_it_is():
    result = search("td3", 8, warmup=5, noise_decay=0.95)
    noise = [t.diagnostics["noise"] for t in result.trials[5:]]
    assert noise == pytest.approx([0.3, 0.3 * 0.95, 0.3 * 0.95**2])


def test_sac_reports_its_entropy_weight_and_no_noise():
    diagnostics = search("sac").trials[-1].diagnostics
    assert "noise" not in diagnostics
    assert diagnostics["entropy_weight"] > 0


def test_every_trial_reports_the_agents_seconds_and_clamped_steps():
    for trial in search("ddpg").trials:
        assert trial.diagnostics["agent_seconds"] >= 0
        assert 0 <= trial.diagnostics["clamped_steps"] <= 3


@pytest.mark.parametrize("name", LEARNERS)
def test_updates_keep_separate_learning_rates(name, monkeypatch):
    seen = []
    update = SeparateRates._update_learning_rate

    def watch(model, optimizers):
        update(model, optimizers)
        seen.append([group["lr"] for o in optimizers for group in o.param_groups])

    monkeypatch.setattr(SeparateRates, "_update_learning_rate", watch)
    search(name, actor_lr=0.01, critic_lr=0.02)
    assert seen[-1] == [0.01, 0.02, 3e-4][: len(seen[-1])]
    assert len(seen[-1]) == (3 if name == "sac" else 2)


@pytest.mark.parametrize("updates_per_step", [1, 3])
def test_an_episode_is_followed_by_as_many_updates_as_it_had_steps(updates_per_step, monkeypatch):
    updates = []
    monkeypatch.setattr(
        SeparateRates,
        "train",
        lambda _self, gradient_steps, batch_size: updates.append((gradient_steps, batch_size)),
        raising=False,
    )
    search("ddpg", 6, warmup=4, updates_per_step=updates_per_step)
    assert updates == [(3 * updates_per_step, 8)] * 3


# -- where noise goes ----------------------------------------------------------------------------


def run_of(name="ddpg", env=None, episodes=6, evaluations=100, seed=0, **settings):
    """A run that has learned from its first episodes."""
    searcher = build_searcher(name, **SMALL | {"warmup": 3, "warm_start": "none"} | settings)
    run = _Run(searcher, env or ToyWalk(40), evaluations, seed)
    for index in range(1, episodes + 1):
        run.learn(run_episode(run.env, run.begin(index), index))
    return run


def actions_of(run, index):
    return run_episode(run.env, run.begin(index), index).actions


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_noise_touches_a_share_of_the_steps(share):
    """The others act as the actor does."""
    run = run_of(elite_share=0.0, noise_share=share, noise_initial=0.5)
    touched = []
    for _ in range(5):
        choose = run.begin(20)
        for observation in np.eye(43, dtype=np.float32)[:40]:
            difference = np.abs(choose(0, observation) - run.policy().act(observation))
            touched.append((difference > 1e-5).all())
            assert touched[-1] or (difference < 1e-5).all()  # a step's actions, all or none
    assert np.mean(touched) == pytest.approx(share, abs=3 * np.sqrt(0.25 / 200))


@pytest.mark.parametrize("name", LEARNERS)
def test_elite_share_of_one_explores_around_the_best_walk_alone(name):
    run = run_of(name, elite_share=1.0, noise_share=1e-9)
    best, actions = run._elite
    assert best == max(e for e in run._replay.rewards.flatten() if e < 0)
    np.testing.assert_array_equal(actions_of(run, 20), actions)


def test_elite_share_of_none_acts_as_the_actor_alone():
    run = run_of(elite_share=0.0, noise_share=1e-9)
    seen = run_episode(run.env, run.begin(20), 20)
    acted = [run.policy().act(observation) for observation in seen.observations[:-1]]
    limited = np.minimum(acted, [ToyWalk.LIMIT, 1, 1])
    np.testing.assert_allclose(seen.actions, limited, atol=1e-5)


def test_elite_share_is_the_fraction_of_the_episodes_around_the_best_walk():
    run = run_of(elite_share=0.3, noise_share=1e-9)
    elite = run._elite[1]
    times = [np.array_equal(actions_of(run, 20), elite) for _ in range(100)]
    assert np.mean(times) == pytest.approx(0.3, abs=3 * np.sqrt(0.3 * 0.7 / 100))


def test_best_walk_is_the_one_of_the_highest_reward():
    run = run_of(episodes=0)
    walks = [np.full((40, 3), value, np.float32) * [1, -1, 1] for value in (0.1, 0.6, 0.3)]
    for index, walk in enumerate(walks, 1):  # the targets are 0.6, -0.6 and 0.6
        run.learn(run_episode(run.env, follow(list(walk.astype(np.float32))), index))
    np.testing.assert_allclose(run._elite[1], walks[1], atol=1e-6)
    assert run._elite[0] == pytest.approx(0, abs=1e-6)


def test_best_walk_is_kept_through_a_state():
    run = run_of(elite_share=1.0)
    other = run_of(elite_share=1.0, episodes=0, seed=1)
    other.restore(run.state())
    assert other._elite[0] == run._elite[0]
    np.testing.assert_array_equal(actions_of(other, 20), actions_of(run, 20))


# -- departures from advice ----------------------------------------------------------------------


@pytest.fixture
def guided(tiny_graph):
    """A walk with advice: errors are made up, and are what is lost."""
    costs = CostModel(
        tiny_graph,
        choices_for(tiny_graph, (FLOAT, Bits(8, 8), Bits(4, 4))),
        Budget("bops", fraction=0.1),
    )
    return losing_env(costs, made_up_errors(costs))


@pytest.mark.parametrize("name", LEARNERS)
def test_anchored_search_is_never_worse_than_the_program_and_meets_the_budget(guided, name):
    result = search(name, 8, env=guided, anchor="program", warm_start="all")
    programs = [guided.evaluate(strategy)[1] for strategy in guided.knapsack_strategies()]
    assert result.best.reward >= max(programs)
    assert result.policy.anchor == "program"
    assert result.policy.observation_names == guided.observation_names
    for trial in [*result.trials, result.policy.walk(guided)]:
        assert guided.costs.cost_of(trial.strategy) <= guided.costs.bound
    again = search(name, 8, env=guided, anchor="program", warm_start="all")
    assert again.trials == result.trials


def test_search_without_anchor_learns_a_policy_without(guided):
    assert search("ddpg", 6, env=guided).policy.anchor == "none"


def test_anchored_warm_up_departs_from_the_advice_in_a_share_of_the_steps(guided):
    settings = {"anchor": "program", "wander": 0.1, "noise_share": 0.4}
    run = run_of("ddpg", guided, 0, **settings)
    actions = np.stack([run.begin(1)(step, None) for step in range(400)])
    touched = (actions != 0).any(1)
    assert (actions[touched] != 0).all()
    assert touched.mean() == pytest.approx(0.4, abs=3 * np.sqrt(0.24 / 400))
    assert actions[touched].std() == pytest.approx(0.1, rel=0.15)
    assert abs(actions[touched].mean()) < 0.02


def test_warm_up_without_anchor_is_uniform():
    run = run_of(episodes=0, wander=0.1, noise_share=0.4)
    actions = np.stack([run.begin(1)(step, None) for step in range(400)])
    assert actions.std() == pytest.approx(np.sqrt(1 / 3), rel=0.1)
    assert (actions != 0).all()


def test_small_departures_stay_near_the_programs_reward(guided):
    near = search("ddpg", 6, env=guided, anchor="program", warm_start="none", warmup=6, wander=0.02)
    (program,) = guided.knapsack_strategies()
    reward = guided.evaluate(program)[1]
    rewards = [trial.reward for trial in near.trials]
    assert min(rewards) > 3 * reward  # both are negative
    far = search("ddpg", 6, env=guided, warm_start="none", warmup=6)
    assert np.mean([trial.reward for trial in far.trials]) < np.mean(rewards)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchor": "program", "warm_start": "none"}, "agent.anchor=program needs"),
        ({"anchor": "none", "warm_start": "program"}, "warm_start=program needs"),
        ({"anchor": "none", "warm_start": "all"}, "warm_start=program needs"),
        ({"belief_share": 0.3}, "agent.belief_share needs .* belief_share=0"),
    ],
)
def test_advice_is_refused_before_the_first_evaluation_where_there_is_none(
    guided, settings, message
):
    def evaluate(strategy):
        raise AssertionError

    ignorant = CompressionEnv(guided.costs, evaluate, SCORE)
    with pytest.raises(ConfigError, match=message):
        search("ddpg", 3, env=ignorant, **settings)


# -- strategies by belief ------------------------------------------------------------------------


@pytest.fixture
def proposed(monkeypatch):
    """Every strategy that a belief proposes from now on."""
    made, propose = [], Surrogate.propose

    def watch(belief, rng):
        made.append(propose(belief, rng))
        return made[-1]

    monkeypatch.setattr(Surrogate, "propose", watch)
    return made


@pytest.mark.parametrize("anchor", ["none", "program"])
def test_belief_share_of_one_walks_to_what_is_proposed_after_the_warm_start(
    guided, proposed, anchor
):
    settings = {"anchor": anchor, "belief_share": 1.0, "elite_share": 0.0, "warmup": 6}
    result = search("ddpg", 9, env=guided, warm_start="all", **settings)
    warm = len(guided.uniform_strategies()) + 1
    assert [trial.strategy for trial in result.trials[warm:]] == proposed
    assert len(proposed) == 9 - warm
    for trial in result.trials:
        assert guided.costs.cost_of(trial.strategy) <= guided.costs.bound


def test_every_trial_is_noted_before_the_next_is_proposed(guided, monkeypatch):
    noted = []
    monkeypatch.setattr(Surrogate, "note", lambda _, *trial: noted.append(trial))
    result = search("ddpg", 6, env=guided, belief_share=0.5)
    assert noted == [(trial.strategy, trial.reward) for trial in result.trials]


def test_belief_and_elite_share_are_fractions_of_the_same_episodes(guided, proposed):
    run = run_of(env=guided, elite_share=0.4, belief_share=0.35, noise_share=1e-9, warmup=2)
    unseen, elite, believed = np.zeros(len(guided.observation_names), np.float32), 0, 0
    for _ in range(100):
        proposed.clear()
        choose = run.begin(20)
        actions = [choose(step, unseen) for step in range(guided.layers_count)]
        believed += len(proposed)
        elite += not proposed and np.array_equal(actions, run._elite[1])
    deviations = 3 * np.sqrt(0.25 / 100)
    assert believed / 100 == pytest.approx(0.35, abs=deviations)
    assert elite / 100 == pytest.approx(0.4, abs=deviations)


def test_no_belief_share_needs_no_errors(guided, proposed):
    ignorant = CompressionEnv(guided.costs, lambda strategy: SCORE, SCORE)
    assert len(search("ddpg", 5, env=ignorant, belief_share=0).trials) == 5
    assert proposed == []


def test_shares_of_more_than_all_episodes_are_refused():
    message = "agent.elite_share and agent.belief_share of td3 .* at most 1, got 0.8 and 0.3"
    with pytest.raises(ConfigError, match=message):
        build_searcher("td3", elite_share=0.8, belief_share=0.3)
    assert build_searcher("td3", elite_share=0.75, belief_share=0.25).belief_share == 0.25


def test_reward_that_the_original_has_none_of_is_refused_before_the_first_evaluation(guided):
    def saved(outcome):  # the original saves nothing
        return -math.inf if outcome.cost >= outcome.original_cost else 1 - outcome.cost

    def evaluate(strategy):
        raise AssertionError

    env = CompressionEnv(guided.costs, evaluate, SCORE, saved, errors=lambda: guided.errors)
    with pytest.raises(ConfigError, match=r"reward=saved gives -inf for .* agent.belief_share=0"):
        search("ddpg", 3, env=env, belief_share=0.3)


@pytest.mark.parametrize("reward", ["haq", "mnasnet", "amc", "accuracy"])
def test_belief_proposes_within_the_budget_whatever_the_reward(guided, reward):
    """HAQ's is in points, MnasNet's can be better than the original's, AMC's is negative."""

    def evaluate(strategy):
        lost = error_of(guided.costs, guided.errors, strategy)
        return classified(0.9 * math.exp(-lost), 1.0, -lost)

    original = classified(0.9, 1.0, 0.0)
    env = CompressionEnv(guided.costs, evaluate, original, reward, errors=lambda: guided.errors)
    settings = {"belief_share": 1.0, "elite_share": 0.0, "warm_start": "none"}
    result = search("ddpg", 5, env=env, **settings)
    assert all(guided.costs.cost_of(t.strategy) <= guided.costs.bound for t in result.trials)


# -- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "seeds"), [("ddpg", 3), ("td3", 1), ("sac", 1)])
def test_learned_agent_beats_random_at_equal_evaluations(name, seeds):
    def rewards(agent, **settings):
        results = [
            build_searcher(agent, **settings).search(ToyWalk(6), 40, seed, lambda _: True)
            for seed in range(seeds)
        ]
        best = np.mean([result.best.reward for result in results])
        late = np.mean([t.reward for result in results for t in result.trials[-10:]])
        return best, late

    # Over ten seeds random finds -6.9 to -4.9, the learned agents -3.3 to -0.6; the mean of
    # their last ten rewards is -14.5 to -10.5 for random and -7.5 to -1.7 for the others.
    as_amc = {"anchor": "none", "warm_start": "none", "noise_share": 1.0, "elite_share": 0.0}
    as_amc["belief_share"] = 0.0
    noise = {} if name == "sac" else {"noise_initial": 1.0}
    best, late = rewards(name, hidden=[64, 64], actor_lr=1e-3, **as_amc, **noise)
    random_best, random_late = rewards("random")
    assert best > random_best + 1
    assert late > random_late + 4
