"""Agents taken apart after any episode, written as plain tensors and JSON, and put together."""

import json

import numpy as np
import pytest
import torch

from agents.searcher import SEARCHERS, Resumable, build_searcher
from agents.state import AgentState, Forgetful, generator_state, restore_generator
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import ArtifactError
from amc.strategy import Bits
from tests.agents.toy import ToyWalk
from tests.envs.made_up import losing_env, made_up_errors

LEARNERS = ("ddpg", "td3", "sac")
PLAIN = {"warm_start": "uniform", "anchor": "none", "belief_share": 0}  # all that the toy knows
SMALL = {"hidden": [16], "batch_size": 8, "replay_episodes": 6} | PLAIN  # the replay overflows
EVALUATIONS = 11


class Kept(Forgetful):
    """Keeps every state, as the bytes that a file would hold."""

    def __init__(self, past=(), state=None):
        self._past, self._state = list(past), state
        self.states = {}

    def load(self):
        return self._past, self._state

    def note(self, trial, state):
        now = state()
        tensors = {name: tensor.clone() for name, tensor in now.tensors.items()}
        self.states[trial.index] = AgentState(tensors, json.loads(json.dumps(now.numbers)))


def search(name, checkpoints, evaluations=EVALUATIONS, seed=3, env=None, **settings):
    searcher = build_searcher(name, **SMALL | settings)
    reported = []

    def on_trial(trial):
        reported.append(trial.index)
        return True

    result = searcher.search_on(env or ToyWalk(3), evaluations, seed, on_trial, checkpoints)
    return result, reported


def same_policy(first, second):
    return all(
        torch.equal(a, b)
        for layers in zip(first.layers, second.layers, strict=True)
        for a, b in zip(*layers, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ddpg", {}), ("td3", {"policy_delay": 3}), ("sac", {}), ("sac", {"entropy": 0.1})],
)
def test_search_goes_on_after_any_episode_to_the_same_trials_and_policy(name, settings):
    kept = Kept()
    whole, _ = search(name, kept, **settings)
    assert sorted(kept.states) == list(range(1, EVALUATIONS + 1))
    for after in (1, 3, 4, 8, EVALUATIONS):
        torch.rand(5)
        np.random.rand(5)  # noqa: NPY002  (the global generators must not matter)
        past = whole.trials[:after]
        resumed, reported = search(name, Kept(past, kept.states[after]), **settings)
        assert resumed.trials == whole.trials
        assert reported == list(range(1, EVALUATIONS + 1))
        assert same_policy(resumed.policy, whole.policy)


@pytest.mark.parametrize("name", LEARNERS)
def test_search_that_believes_goes_on_after_any_episode_to_the_same_trials(name, tiny_graph):
    """What is lost are other errors than those estimated, so that the belief matters."""
    pairs = [Bits(width, width) for width in (2, 3, 4, 5, 6, 8, 32)]
    costs = CostModel(tiny_graph, choices_for(tiny_graph, pairs), Budget("bops", fraction=0.02))
    errors, truth = made_up_errors(costs, 0), made_up_errors(costs, 1)
    settings = {"anchor": "program", "warm_start": "all", "belief_share": 0.6, "elite_share": 0.2}

    def run(checkpoints):
        env = losing_env(costs, errors, truth)
        result, _ = search(name, checkpoints, env=env, **settings)
        return result

    kept = Kept()
    whole = run(kept)
    for after in (1, 4, 6, 9):
        resumed = run(Kept(whole.trials[:after], kept.states[after]))
        assert resumed.trials == whole.trials
        assert same_policy(resumed.policy, whole.policy)


def test_resumed_search_notes_new_trials_only():
    kept = Kept()
    whole, _ = search("ddpg", kept)
    later = Kept(whole.trials[:8], kept.states[8])
    search("ddpg", later)
    assert sorted(later.states) == [9, 10, 11]


def test_resumed_search_ends_when_told_while_it_reports_its_past():
    kept = Kept()
    whole, _ = search("ddpg", kept)
    searcher = build_searcher("ddpg", **SMALL)
    again = Kept(whole.trials[:8], kept.states[8])
    result = searcher.search_on(ToyWalk(3), EVALUATIONS, 3, lambda t: t.index < 5, again)
    assert result.trials == whole.trials[:5]


@pytest.mark.parametrize("name", LEARNERS)
def test_state_is_not_changed_by_what_the_agent_learns_after_it(name):
    class Later(Kept):
        def note(self, trial, state):
            if trial.index == 4:
                self.states[4] = state()  # not copied

    at_once, later = Kept(), Later()
    search(name, at_once)
    search(name, later)
    for key, tensor in at_once.states[4].tensors.items():
        assert torch.equal(later.states[4].tensors[key], tensor), key


def test_state_holds_weights_targets_optimizers_replay_and_streams():
    kept = Kept()
    search("sac", kept)
    state = kept.states[EVALUATIONS]
    names = " ".join(state.tensors)
    for part in ("policy/actor.", "policy/critic.", "policy/critic_target.", "log_ent_coef"):
        assert f"model/{part}" in names
    for optimizer in ("actor.optimizer", "critic.optimizer", "ent_coef_optimizer"):
        assert f"model/{optimizer}/0/exp_avg" in state.tensors
    assert len(state.tensors["replay/rewards"]) == 6 * 3  # six episodes of three steps
    assert "stream" in state.tensors
    # Warm-up of round(0.25 * 11) = 3 episodes; from the last of them on, 3 updates after each.
    assert state.numbers["model"]["updates"] == 3 * (EVALUATIONS - 3 + 1)
    assert state.numbers["replay"]["full"] is True


def test_only_searchers_with_a_state_are_resumable():
    found = {name for name, made in SEARCHERS.items() if hasattr(made, "search_on")}
    assert found == set(LEARNERS)
    assert isinstance(build_searcher("td3"), Resumable)
    assert not isinstance(build_searcher("random"), Resumable)


def test_generator_goes_on_where_its_state_was_taken_through_json():
    rng = np.random.default_rng(5)
    rng.random(3)
    rng.integers(0, 10, 1)  # leaves half of a word behind
    state = json.loads(json.dumps(generator_state(rng)))
    drawn = rng.random(4), rng.integers(0, 10, 7)
    other = np.random.default_rng(6)
    restore_generator(other, AgentState({}, {"rng": state}), "rng")
    np.testing.assert_array_equal(other.random(4), drawn[0])
    np.testing.assert_array_equal(other.integers(0, 10, 7), drawn[1])


# -- states that another agent left, or nobody -------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    """The state of a small agent that has learned, as a file would hold it."""
    kept = Kept()
    search("sac", kept, evaluations=5)
    return kept.states[5]


def resumed_from(state, tensors=None, numbers=None):
    """Go on from the state with other tensors and numbers; None leaves one out."""
    found = {**state.tensors, **(tensors or {})}
    plain = {**state.numbers, **(numbers or {})}
    given = {name: tensor for name, tensor in found.items() if tensor is not None}
    changed = {name: value for name, value in plain.items() if value != "gone"}
    return search("sac", Kept([None] * 5, AgentState(given, changed)), evaluations=5)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("stream", None, "stream must be torch.uint8 .*, it is missing"),
        ("stream", torch.zeros(7, dtype=torch.uint8), "stream must be torch.uint8"),
        ("replay/rewards", torch.zeros(3, 1), "rewards must be .* of "),
        ("replay/actions", None, "actions must be .* missing"),
        ("model/policy/actor.mu.bias", None, "it lacks or adds policy .'actor.mu.bias'"),
        ("model/policy/actor.mu.bias", torch.zeros(9), "policy/actor.mu.bias must be .* of .3,"),
        ("model/policy/more", torch.zeros(9), "it lacks or adds policy .'more'"),
        ("model/elsewhere/more", torch.zeros(9), "it has .'elsewhere'"),
        ("model/actor.optimizer/0/step", torch.zeros(()), "steps of actor.optimizer must be at"),
        ("model/actor.optimizer/0/exp_avg", None, "lacks or adds actor.optimizer .'0/exp_avg'"),
        ("model/log_ent_coef", None, "log_ent_coef must be"),
        ("model/log_ent_coef", torch.tensor([float("nan")]), "log_ent_coef holds values that"),
        ("elite", torch.zeros(1, 3), "elite must be torch.float32 of .3, 3., it is"),
    ],
)
def test_tensors_that_another_agent_left_are_refused_by_name(learned, name, tensor, said):
    with pytest.raises(ArtifactError, match=f"The agent's state .*{said}"):
        resumed_from(learned, tensors={name: tensor})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"model": "gone"}, "is incomplete: 'model' must be an object, and is missing"),
        ({"model": {"updates": -1}}, "'updates' must be a whole number from 0, got -1"),
        ({"replay": {}}, "'next' must be a whole number from 0, and is missing"),
        ({"replay": {"next": 99, "full": False}}, "its replay has 99 transitions, at most 18"),
        ({"replay": {"next": 18, "full": True}}, "its replay has 18 transitions, at most 18"),
        ({"rng": {"bit_generator": "MT19937"}}, "rng is no state of a generator"),
        ({"rng": [3]}, "'rng' must be an object, got .3."),
        ({"learned": 1}, "'learned' must be true or false, got 1"),
        ({"elite": "x"}, "'elite' must be a number, or null, got 'x'"),
    ],
)
def test_numbers_that_another_agent_left_are_refused_by_name(learned, numbers, said):
    with pytest.raises(ArtifactError, match=f"The agent's state .*{said}"):
        resumed_from(learned, numbers=numbers)


def test_stream_that_is_no_state_of_a_generator_is_refused(learned):
    with pytest.raises(ArtifactError, match="stream is no state of a generator"):
        resumed_from(learned, tensors={"stream": torch.full_like(learned.tensors["stream"], 255)})
