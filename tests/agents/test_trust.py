from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy.stats import spearmanr

from agents.experience import EXPERIENCE_FILE, load_experience, save_experience
from agents.policies import load_policy
from agents.policy import Policy
from agents.searcher import build_searcher
from agents.trust import SHIPPED_FOLDER, TrustPolicy, prior_of
from agents.trust_explore import explored
from agents.trust_fit import FitSettings, Remembered, fitted
from amc.errors import ConfigError, PolicyError
from envs.knapsack import knapsack_strategy
from envs.trust import REACH, TRUST_FEATURES, Trust
from tests.agents.test_policy import make_policy
from tests.envs.made_up import losing_env, made_up_errors
from tests.envs.test_trust import tiny_costs

HOME = Path(__file__).parents[2]
FEATURES = len(TRUST_FEATURES)


def actor(seed: int, scale: float = 1.0) -> tuple:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((5, FEATURES), (4, 5))
    return tuple(
        (scale * torch.randn(shape, generator=draw), torch.randn(shape[0], generator=draw))
        for shape in shapes
    )


def make_trust(actors: int = 2) -> TrustPolicy:
    return TrustPolicy(tuple(actor(seed) for seed in range(actors)), origin={"tasks": ["one"]})


def edit(folder: Path, **changes: object) -> None:
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- what it does ----------------------------------------------------------------------------------


def constant(value: float) -> tuple:
    """An actor whose four actions are a number, whatever it sees."""
    bias = torch.full((4,), float(np.arctanh(value)))
    return ((torch.zeros(4, FEATURES), bias),)


def test_actors_that_agree_are_followed_and_those_that_do_not_are_not():
    seen = np.zeros((3, FEATURES), np.float32)
    agreed = TrustPolicy((constant(0.5), constant(0.5))).act(seen)
    np.testing.assert_allclose(agreed, 0.5, atol=1e-6)
    # mean 0.2, variance 0.09: 0.2^3 / (0.04 + 0.09)
    doubted = TrustPolicy((constant(0.5), constant(-0.1))).act(seen)
    np.testing.assert_allclose(doubted, 0.2**3 / 0.13, atol=1e-6)
    opposed = TrustPolicy((constant(0.5), constant(-0.5))).act(seen)
    np.testing.assert_allclose(opposed, 0, atol=1e-6)


def test_walk_allocates_by_the_corrected_errors_within_the_budget():
    costs = tiny_costs()
    errors = made_up_errors(costs)
    env, policy = losing_env(costs, errors), make_trust()
    trust = Trust(costs, errors)
    for strength in policy.strengths:
        trial = policy.walk(env, strength, index=7)
        action = strength * policy.act(trust.observations)
        assert trial.strategy == knapsack_strategy(costs, trust.corrected(action))
        assert (trial.index, trial.reward) == (7, env.reward_of(trial.strategy))
    assert trial.strategy == env.knapsack_strategies()[0]  # the last strength is 0


def test_policy_may_see_some_of_the_features_in_an_order_of_its_own():
    names = ("kernel", "layer_index")
    weight = torch.tensor([[1.0, 0.0]] * 4)
    policy = TrustPolicy((((weight, torch.zeros(4)),),), names)
    costs = tiny_costs()
    errors = made_up_errors(costs)
    trust = Trust(costs, errors)
    action = np.tanh(trust.observed(names)[:, :1]) * np.ones((1, 4))
    after, expected = policy.correct(trust), trust.corrected(action)
    np.testing.assert_allclose(after.options, expected.options, rtol=1e-6)


# -- files -----------------------------------------------------------------------------------------


def test_saved_policy_comes_back_as_it_was(tmp_path: Path) -> None:
    policy = make_trust(3)
    policy.save(tmp_path)
    found = load_policy(tmp_path)
    assert isinstance(found, TrustPolicy)
    assert (found.id, found.origin) == (policy.id, {"tasks": ["one"]})
    seen = np.random.default_rng(0).normal(size=(6, FEATURES)).astype(np.float32)
    np.testing.assert_array_equal(found.act(seen), policy.act(seen))


def test_policy_of_the_former_format_is_read_as_what_it_is(tmp_path: Path) -> None:
    make_policy().save(tmp_path)
    assert isinstance(load_policy(tmp_path), Policy)
    with pytest.raises(PolicyError, match="version"):
        TrustPolicy.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 9}, "version"),
        ({"observation_names": [*[*TRUST_FEATURES][:-1], "moon"]}, "does not know: .?'moon'"),
        ({"observation_names": ["kernel", "kernel"]}, "a list of different names"),
        ({"actors": 0}, "a whole number from 1 to 64, got 0"),
        ({"actors": 10**9}, "a whole number from 1 to 64"),
        ({"layer_sizes": [FEATURES, 5, 3]}, "must go from 27"),
        ({"layer_sizes": [FEATURES, 9, 4]}, r"must be float32 of shape \(9, 27\)"),
        ({"actors": 3}, "must hold"),
        ({"reach": 1e9}, "'reach' must be 20.0"),
        ({"weights": "0"}, "describes other weights"),
        ({"origin": 3}, "origin"),
    ],
)
def test_description_that_does_not_fit_is_refused(changes: dict, said: str, tmp_path: Path) -> None:
    make_trust().save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(PolicyError, match=said):
        load_policy(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    make_trust().save(tmp_path)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PolicyError, match=r"policy\.safetensors"):
        load_policy(tmp_path)
    path.unlink()
    with pytest.raises(PolicyError, match="not found"):
        load_policy(tmp_path)
    with pytest.raises(PolicyError, match="not found"):
        load_policy(tmp_path / "nowhere")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    layers = constant(0.5)
    layers[0][0][0, 0] = float("nan")
    TrustPolicy((layers,)).save(tmp_path)
    with pytest.raises(PolicyError, match="values that are not finite"):
        load_policy(tmp_path)


def test_no_prior_is_none_and_another_is_read_from_its_folder(tmp_path: Path) -> None:
    assert prior_of("none") is None
    policy = make_trust()
    policy.save(tmp_path)
    found = prior_of(str(tmp_path))
    assert found is not None
    assert found.id == policy.id


# -- fitting ---------------------------------------------------------------------------------------


def remembered(family: str, factors: np.ndarray, seed: int, strategies: int = 80) -> Remembered:
    """Strategies that lose what is estimated, times the same factors in all layers."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(10, FEATURES)).astype(np.float32)
    parts = rng.gamma(1, 1, (strategies, 10, 4))
    lost = 3.7 * (parts * factors).sum((1, 2))  # the scale of a task says nothing
    return Remembered(family, f"{family} {seed}", observations, parts, lost)


FACTORS = np.array([0.5, 1.0, 2.0, 4.0])


def test_fitted_actors_find_the_factors_but_for_their_scale():
    tasks = [remembered("one", FACTORS, 0), remembered("two", FACTORS, 1)]
    settings = FitSettings(actors=2, hidden=8, steps=300, restraint=0.001)
    policy = fitted(tasks, settings, 0)
    found = REACH ** policy.opinions(remembered("three", FACTORS, 2).observations).mean((0, 1))
    np.testing.assert_allclose(found / found[1], FACTORS, rtol=0.3)


def test_fitting_is_repeatable_and_the_seed_counts():
    tasks = [remembered(str(n), FACTORS, n, 20) for n in range(3)]
    settings = FitSettings(actors=3, hidden=4, steps=3)
    first, again, other = (fitted(tasks, settings, seed) for seed in (0, 0, 1))
    assert first.id == again.id
    assert first.id != other.id


def test_fitting_leaves_the_callers_random_stream_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fitted([remembered("one", FACTORS, 0, 20)], FitSettings(actors=1, steps=2), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_to_learn_from_is_said():
    task = remembered("one", FACTORS, 0)
    few = Remembered("one", "one", task.observations, task.parts[:5], task.lost[:5])
    lossless = Remembered("two", "two", task.observations, task.parts, 0 * task.lost)
    for tasks in ([], [few, lossless]):
        with pytest.raises(PolicyError, match=r"none of the . tasks has 8 evaluated strategies"):
            fitted(tasks, FitSettings(), 0)


def test_setting_of_the_fit_out_of_range_is_named_as_an_option():
    with pytest.raises(ConfigError, match=r"fit\.actors of amc train must be a whole number"):
        FitSettings(actors=0)
    with pytest.raises(ConfigError, match=r"fit\.restraint of amc train must be a number"):
        FitSettings(restraint=-1)


def test_exploration_moves_layers_that_look_alike_together():
    seen = np.zeros((6, FEATURES), np.float32)
    seen[3:] = 1  # two kinds of layers
    rng = np.random.default_rng(0)
    actions = np.stack([explored(seen, np.zeros((6, 4)), 0.1, rng) for _ in range(400)])
    between = np.corrcoef(actions[:, :, 0].T)
    assert between[0, 1] > 0.3
    assert between[0, 4] < -0.3
    assert np.abs(actions).max() <= 1


# -- experience ------------------------------------------------------------------------------------


def test_experience_comes_back_as_it_was_but_for_the_digits_of_a_half(tmp_path: Path) -> None:
    tasks = [remembered("one", FACTORS, 0, 9), remembered("two", FACTORS, 1, 12)]
    save_experience(tmp_path, tasks)
    for before, after in zip(tasks, load_experience(tmp_path), strict=True):
        assert (after.family, after.name) == (before.family, before.name)
        np.testing.assert_array_equal(after.observations, before.observations)
        scaled = before.parts / np.median(before.parts.sum((1, 2)))
        np.testing.assert_allclose(after.parts, scaled, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(after.lost, before.lost, rtol=1e-6)


def test_estimates_too_small_for_a_half_are_kept(tmp_path: Path) -> None:
    task = remembered("one", FACTORS, 0, 9)
    small = Remembered("one", "one", task.observations, 1e-9 * task.parts, task.lost)
    save_experience(tmp_path, [small])
    (found,) = load_experience(tmp_path)
    assert found.is_telling
    np.testing.assert_allclose(np.median(found.parts.sum((1, 2))), 1, rtol=1e-3)


def experience_with(folder: Path, metadata: dict | None = None, **tensors: torch.Tensor) -> None:
    save_experience(folder, [remembered("one", FACTORS, 0, 9)])
    known = {
        "0.observations": torch.zeros(10, FEATURES),
        "0.parts": torch.zeros(9, 10, 4, dtype=torch.float16),
        "0.lost": torch.zeros(9),
    }
    about = {
        "version": "1",
        "features": json.dumps(list(TRUST_FEATURES)),
        "tasks": json.dumps([{"family": "one", "name": "one"}]),
    }
    save_file(known | tensors, folder / EXPERIENCE_FILE, about | (metadata or {}))


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        ({"version": "7"}, {}, "is of version '7', this amc reads '1'"),
        ({"features": '["kernel"]'}, {}, "other features of a layer"),
        ({"tasks": "[3]"}, {}, "tasks"),
        ({"tasks": "{"}, {}, "JSON"),
        ({"tasks": '[{"name": "one"}]'}, {}, "is damaged: 'one' has"),
        ({}, {"0.lost": torch.zeros(8)}, "is damaged: 'one' has"),
        ({}, {"0.parts": torch.zeros(9, 10, 4)}, "must be finite torch.float16"),
        ({}, {"0.lost": torch.full((9,), float("nan"))}, "must be finite torch.float32"),
    ],
)
def test_experience_that_does_not_fit_is_refused(
    metadata: dict, tensors: dict, said: str, tmp_path: Path
) -> None:
    experience_with(tmp_path, metadata, **tensors)
    with pytest.raises(PolicyError, match=said):
        load_experience(tmp_path)


def test_missing_experience_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="Experience of a policy not found"):
        load_experience(tmp_path)


# -- the one that comes with amc -------------------------------------------------------------------


def test_shipped_policy_is_small_and_says_what_it_was_made_from():
    policy = load_policy("shipped")
    assert isinstance(policy, TrustPolicy)
    assert sum(path.stat().st_size for path in SHIPPED_FOLDER.iterdir()) < 1e6
    tasks = policy.origin["options"]["tasks"]
    assert (
        tasks == yaml.safe_load((HOME / "conf/experiment/shipped_policy.yaml").read_text())["tasks"]
    )
    names = {task.name for task in load_experience(SHIPPED_FOLDER)}
    assert names == set(policy.origin["learned_from"])
    assert len(names) >= len(tasks)


def test_shipped_policy_orders_the_strategies_that_it_was_fitted_to_better_than_the_estimates():
    policy = load_policy("shipped")
    assert isinstance(policy, TrustPolicy)
    better = []
    for task in load_experience(SHIPPED_FOLDER):
        if task.is_telling:
            factors = REACH ** policy.act(task.observations)
            before = spearmanr(task.parts.sum((1, 2)), task.lost)[0]
            better.append(spearmanr((task.parts * factors).sum((1, 2)), task.lost)[0] > before)
    assert np.mean(better) > 0.8


# -- as a prior ------------------------------------------------------------------------------------


def test_search_begins_with_what_the_prior_corrects(tmp_path: Path) -> None:
    weight = torch.tensor([[-30.0]] * 4)  # the first layer's errors count most
    policy = TrustPolicy((((weight, torch.full((4,), 9.0)),),), ("layer_index",))
    policy.save(tmp_path)
    costs = tiny_costs()
    errors = made_up_errors(costs)
    env = losing_env(costs, errors)
    searcher = build_searcher("ddpg", prior=str(tmp_path), warm_start="program", hidden=[8])
    found = searcher.search(env, 3, 0, lambda _: True)
    corrected = policy.walk(env).strategy
    assert corrected != env.knapsack_strategies()[0]
    assert [trial.strategy for trial in found.trials[:2]] == [
        corrected,
        env.knapsack_strategies()[0],
    ]


def test_search_without_estimates_needs_no_prior() -> None:
    searcher = build_searcher(
        "ddpg", prior="nowhere", anchor="none", belief_share=0, warm_start="uniform"
    )
    assert searcher.prior_id is None
