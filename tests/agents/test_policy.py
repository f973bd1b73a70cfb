import base64
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from agents import off_policy
from agents.policy import Policy, check_observations
from agents.searcher import build_searcher
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.errors import ConfigError, PolicyError
from amc.strategy import FLOAT, Bits
from envs.compression import CompressionEnv
from tests.agents.toy import ToyWalk
from tests.envs.made_up import SCORE, guided_env

NAMES = ("a", "b")


def make_policy(seed=0):
    torch.manual_seed(seed)
    return Policy.from_modules("ddpg", NAMES, [torch.nn.Linear(2, 4), torch.nn.Linear(4, 3)])


def edit(folder, **changes):
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_action_is_the_tanh_of_the_last_layer_over_relus():
    # hidden = relu((1 - 2, 2 * 2 + 1)) = (0, 5); action = tanh((5 / 10, -5 / 10, 0 + 1))
    layers = (
        (torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([0.0, 1.0])),
        (torch.tensor([[9.0, 0.1], [9.0, -0.1], [9.0, 0.0]]), torch.tensor([0.0, 0.0, 1.0])),
    )
    action = Policy("ddpg", NAMES, layers).act(np.array([1, 2], np.float32))
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, np.tanh([0.5, -0.5, 1.0]), atol=1e-6)


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_policy_acts_like_the_model_it_was_taken_from(name, monkeypatch):
    runs = []

    class Watched(off_policy._Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            runs.append(self)

    monkeypatch.setattr(off_policy, "_Run", Watched)
    env = ToyWalk(layers_count=3)
    searcher = build_searcher(name, hidden=[16, 8], anchor="none", belief_share=0)
    policy = searcher.search(env, 6, 0, lambda _: True).policy
    rng = np.random.default_rng(0)
    for _ in range(20):
        observation = rng.uniform(-1, 1, env.observation_space.shape).astype(np.float32)
        expected, _ = runs[0]._model.predict(observation, deterministic=True)
        np.testing.assert_allclose(policy.act(observation), expected, atol=1e-6)


def test_saved_policy_acts_the_same_when_loaded(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "new")
    loaded = Policy.load(tmp_path / "new")
    assert (loaded.algorithm, loaded.observation_names) == ("ddpg", NAMES)
    assert loaded.layer_sizes == [2, 4, 3]
    observation = np.array([0.3, -0.7], np.float32)
    np.testing.assert_array_equal(loaded.act(observation), policy.act(observation))


@pytest.mark.parametrize("anchor", ["program", "none"])
def test_anchor_is_saved_with_the_policy(tmp_path, anchor):
    dataclasses.replace(make_policy(), anchor=anchor).save(tmp_path)
    assert Policy.load(tmp_path).anchor == anchor


def test_policy_has_no_anchor_unless_it_is_said():
    assert make_policy().anchor == "none"


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        make_policy().save(tmp_path / folder)
    for name in ("policy.json", "policy.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_walk_evaluates_the_deterministic_actions_once():
    env = ToyWalk(layers_count=2)
    modules = [torch.nn.Linear(5, 3)]
    policy = Policy.from_modules("ddpg", env.observation_names, modules)
    trial = policy.walk(env)
    assert len(env.episodes) == 1
    assert trial.strategy == policy.walk(env).strategy
    observation, _ = env.reset()
    np.testing.assert_array_equal(env.episodes[0][0], policy.act(observation))


def test_strength_scales_every_action_and_0_is_an_untouched_anchor():
    env = ToyWalk(layers_count=2)
    policy = Policy.from_modules("ddpg", env.observation_names, [torch.nn.Linear(5, 3)])
    policy.walk(env, 0.5)
    observation, _ = env.reset()
    np.testing.assert_array_equal(env.episodes[0][0], policy.act(observation) / 2)
    assert policy.walk(env, 0.5, index=7).index == 7


def test_strengths_to_try_are_those_of_departures_from_an_advice():
    policy = make_policy()
    assert policy.strengths == (1.0,)
    assert dataclasses.replace(policy, anchor="program").strengths == (1.0, 0.5, 0.25, 0.0)


@pytest.mark.parametrize(
    "strengths", [[], [1.5], [-0.1], [1, 1.0], ["1"], [True], 0.5, "10", [float("nan")], [None]]
)
def test_strengths_that_are_no_different_fractions_are_refused(strengths):
    policy = dataclasses.replace(make_policy(), anchor="program")
    with pytest.raises(PolicyError, match=r"must be a list of different numbers from 0 .* got"):
        policy.check_strengths(strengths)


def test_policy_without_an_advice_has_full_strength_alone():
    make_policy().check_strengths([1])
    with pytest.raises(PolicyError, match=r"learned with agent\.anchor=none: .*got \[1, 0\]"):
        make_policy().check_strengths([1, 0])


@pytest.fixture
def guided(tiny_graph):
    choices = choices_for(tiny_graph, (FLOAT, Bits(8, 8), Bits(4, 4)))
    return guided_env(CostModel(tiny_graph, choices, Budget("bops", fraction=0.1)))


def still_policy(env, anchor):
    """An actor that answers 0 to whatever it sees."""
    module = torch.nn.Linear(len(env.observation_names), 3)
    torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(module.bias)
    return Policy.from_modules("ddpg", env.observation_names, [module], anchor)


def test_anchored_policy_departs_from_the_programs_advice(guided):
    trial = still_policy(guided, "program").walk(guided)
    guided.reset()
    for _ in range(guided.layers_count):
        *_, info = guided.step(guided.prior_action().astype(np.float32))
    assert trial.strategy == info["strategy"]
    assert still_policy(guided, "none").walk(guided).strategy != trial.strategy
    moving = dataclasses.replace(
        still_policy(guided, "program"),
        layers=((torch.zeros(3, len(guided.observation_names)), torch.full((3,), -0.3)),),
    )
    assert moving.walk(guided).strategy != trial.strategy
    assert moving.walk(guided, 0.0).strategy == trial.strategy


def test_anchored_policy_needs_an_environment_that_knows_errors(guided):
    ignorant = CompressionEnv(
        guided.costs, lambda strategy: SCORE, SCORE, observation=("stride", "kernel")
    )
    with pytest.raises(ConfigError, match=r"agent.anchor=program needs the estimated errors"):
        still_policy(ignorant, "program").walk(ignorant)


def test_walk_in_an_environment_with_other_observations_names_the_differences():
    with pytest.raises(PolicyError, match=r"missing here: a, b; unknown to the policy: position_0"):
        make_policy().walk(ToyWalk(layers_count=2))


def test_observations_in_another_order_are_refused():
    with pytest.raises(PolicyError, match="Their order differs"):
        check_observations(["a", "b"], ["b", "a"])


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_missing_file_is_named(tmp_path, name):
    make_policy().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(PolicyError, match=rf"not found: .*{name}"):
        Policy.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5_000, b"[]", b'{"format": "x"}']
)
def test_broken_description_is_refused(tmp_path, content):
    make_policy().save(tmp_path)
    (tmp_path / "policy.json").write_bytes(content)
    with pytest.raises(PolicyError, match=r"policy\.json"):
        Policy.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x80\x04cos\nsystem\n(S'false'\ntR."])
def test_broken_weights_are_refused(tmp_path, content):
    make_policy().save(tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(content)
    with pytest.raises(PolicyError, match="not a readable safetensors file"):
        Policy.load(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    make_policy().save(tmp_path)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PolicyError, match="not a readable safetensors file"):
        Policy.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version 1; this amc reads 2. Use the amc that wrote it"),
        ({"version": None}, "version None"),
        ({"algorithm": 7}, "'algorithm' must be a name, got 7"),
        ({"algorithm": ""}, "'algorithm'"),
        ({"anchor": "advice"}, "'anchor' must be one of program, none, got 'advice'"),
        ({"anchor": None}, "'anchor' must be one of program, none, got None"),
        ({"observation_names": "ab"}, "'observation_names' must be a list of names"),
        ({"observation_names": ["a", 1]}, "'observation_names'"),
        ({"observation_names": ["a"]}, r"'layer_sizes' must go from 1"),
        ({"layer_sizes": []}, "'layer_sizes' must be a list"),
        ({"layer_sizes": [2, -4, 3]}, "'layer_sizes'"),
        ({"layer_sizes": [2, True, 3]}, "'layer_sizes'"),
        ({"layer_sizes": [2, 4, 1]}, r"'layer_sizes' must go from 2 .* to 3"),
        ({"layer_sizes": [2]}, r"'layer_sizes' must go from 2"),
        ({"layer_sizes": [2, 5, 3]}, r"layers\.0\.weight must be float32 of shape \(5, 2\)"),
        ({"layer_sizes": [2, 3]}, r"must hold \['layers\.0\.bias', 'layers\.0\.weight'\]"),
        ({"activation": "gelu"}, "'activation' must be 'relu', got 'gelu'"),
        ({"output": "sigmoid"}, "'output'"),
        ({"action_names": ["a"]}, "'action_names'"),
        ({"action_range": [0, 1]}, "'action_range'"),
        ({"weights": None}, "'weights'"),
        ({"weights": "0123456789abcdef"}, "from different policies"),
    ],
)
def test_description_that_does_not_fit_is_refused(tmp_path, changes, message):
    make_policy().save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(PolicyError, match=message):
        Policy.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layers.1.bias", torch.tensor([0.0, float("nan"), 0.0]), "not finite"),
        ("layers.1.weight", torch.full((3, 4), float("inf")), "not finite"),
        ("layers.0.weight", torch.zeros(2, 4), r"shape \(4, 2\), got .* shape \(2, 4\)"),
        ("layers.0.weight", torch.zeros(4, 2, dtype=torch.float16), "float16"),
        ("layers.2.bias", torch.zeros(1), "must hold"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, name, tensor, message):
    policy = make_policy()
    policy.save(tmp_path)
    save_file(policy._tensors() | {name: tensor}, tmp_path / "policy.safetensors")
    with pytest.raises(PolicyError, match=message):
        Policy.load(tmp_path)


def test_weights_of_another_policy_are_refused(tmp_path):
    make_policy(0).save(tmp_path)
    make_policy(1).save(tmp_path / "other")
    (tmp_path / "policy.safetensors").write_bytes(
        (tmp_path / "other" / "policy.safetensors").read_bytes()
    )
    with pytest.raises(PolicyError, match="from different policies"):
        Policy.load(tmp_path)


# As it was written before there were decisions beside channels and bits.
WRITTEN = """{
  "format": "amc-policy",
  "version": 2,
  "algorithm": "ddpg",
  "observation_names": [
    "stride",
    "kernel"
  ],
  "anchor": "program",
  "action_names": [
    "preserve_ratio",
    "weight_bits",
    "activation_bits"
  ],
  "action_range": [
    -1,
    1
  ],
  "activation": "relu",
  "output": "tanh",
  "layer_sizes": [
    2,
    3
  ],
  "weights": "0f2b1174b455b294"
}
"""
WEIGHTS = (
    "uAAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJhbWMtcG9saWN5In0sImxheWVycy4wLmJpYXMiOnsiZHR5"
    "cGUiOiJGMzIiLCJzaGFwZSI6WzNdLCJkYXRhX29mZnNldHMiOlswLDEyXX0sImxheWVycy4wLndlaWdodCI6eyJkdHlw"
    "ZSI6IkYzMiIsInNoYXBlIjpbMywyXSwiZGF0YV9vZmZzZXRzIjpbMTIsMzZdfX0gICAgICAgAAAAAAAAAD8AAAC/AAAA"
    "PwAAgL4AAAAAAACAPwAAgD8AAAAA"
)


def test_earlier_files_are_read_and_written_byte_for_byte(tmp_path):
    (tmp_path / "policy.json").write_text(WRITTEN)
    (tmp_path / "policy.safetensors").write_bytes(base64.b64decode(WEIGHTS))
    policy = Policy.load(tmp_path)
    assert policy.action_names == ("preserve_ratio", "weight_bits", "activation_bits")
    action = policy.act(np.array([1, 2], np.float32))
    np.testing.assert_allclose(action, np.tanh([0.0, 2.5, 0.5]), atol=1e-6)
    policy.save(tmp_path / "again")
    assert (tmp_path / "again" / "policy.json").read_text() == WRITTEN


def test_policy_that_decides_more_is_read_back_and_needs_as_many_outputs(tmp_path):
    names = ("preserve_ratio", "weight_bits", "activation_bits", "sparsity")
    modules = [torch.nn.Linear(1, 4)]
    Policy.from_modules("ddpg", ["previous_sparsity"], modules, action_names=names).save(tmp_path)
    policy = Policy.load(tmp_path)
    assert policy.action_names == names
    policy.check_features()
    edit(tmp_path, action_names=names[:3])
    with pytest.raises(PolicyError, match=r"must go from 1 .* to 3 \(action_names\)"):
        Policy.load(tmp_path)
