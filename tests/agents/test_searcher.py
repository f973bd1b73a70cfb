from pathlib import Path

import pytest
import yaml

from agents.searcher import SEARCHERS, build_searcher
from amc.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "agent"


def test_unknown_agent_names_near_matches_and_all_agents():
    with pytest.raises(ConfigError, match=r"'dppg'.*Did you mean 'ddpg'.*random, sac, td3"):
        build_searcher("dppg")


def test_unknown_setting_names_near_matches():
    with pytest.raises(ConfigError, match=r"'ddpg'.*'actor_rl'.*Did you mean 'actor_lr'"):
        build_searcher("ddpg", actor_rl=0.1)


def test_setting_of_another_agent_is_refused():
    with pytest.raises(ConfigError, match="warmup"):
        build_searcher("uniform", warmup=3)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("ddpg", "actor_lr", 0),
        ("ddpg", "actor_lr", "fast"),
        ("ddpg", "critic_lr", float("nan")),
        ("ddpg", "gamma", 1.1),
        ("ddpg", "tau", True),
        ("ddpg", "batch_size", 6.5),
        ("ddpg", "batch_size", 0),
        ("ddpg", "warmup", 1.5),
        ("ddpg", "warmup", -1),
        ("ddpg", "hidden", []),
        ("ddpg", "hidden", [300, 0]),
        ("ddpg", "hidden", 300),
        ("ddpg", "noise_decay", 0),
        ("ddpg", "noise_initial", 0),
        ("ddpg", "warm_start", "best"),
        ("ddpg", "anchor", "uniform"),
        ("ddpg", "anchor", None),
        ("td3", "wander", 0),
        ("sac", "wander", "far"),
        ("ddpg", "noise_share", 0),
        ("sac", "noise_share", 1.5),
        ("td3", "elite_share", -0.1),
        ("ddpg", "elite_share", 2),
        ("td3", "policy_delay", 0),
        ("td3", "target_noise", -0.1),
        ("sac", "entropy", "learned"),
        ("sac", "entropy", -1),
        ("random", "warm_start", None),
    ],
)
def test_value_out_of_range_names_setting_expectation_and_value(name, setting, value):
    with pytest.raises(ConfigError, match=rf"agent\.{setting} of {name} must be .*, got"):
        build_searcher(name, **{setting: value})


@pytest.mark.parametrize(
    ("warmup", "episodes"), [(0.25, 25), (0, 0), (1, 1), (30, 30), (0.0, 0), (0.999, 100)]
)
def test_warmup_is_a_fraction_of_the_evaluations_or_a_number(warmup, episodes):
    assert build_searcher("ddpg", warmup=warmup).warmup_episodes(100) == episodes


def test_every_agent_has_a_configuration_with_its_defaults():
    assert {path.stem for path in CONF.glob("*.yaml")} == SEARCHERS.keys()
    for name in SEARCHERS:
        settings = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
        assert settings.pop("name") == name
        assert build_searcher(name, **settings) == build_searcher(name)
        assert settings.keys() == vars(build_searcher(name)).keys()
