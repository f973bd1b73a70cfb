import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from amc.data import DataSet
from amc.errors import ConfigError
from amc.objectives import DEFAULT, NamedScore
from amc.problem.evaluate import Evaluation
from envs.reward import REWARDS, Outcome, Reward, build_reward
from tests.conftest import classified

OUTCOME = Outcome(
    evaluation=classified(accuracy=0.8, loss=0.7, agreement=-0.25),
    original=classified(accuracy=0.9, loss=0.3, agreement=0.0),
    cost=3.0,
    bound=6.0,
    original_cost=12.0,
    macs=math.e**10,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 0.8),
        ("amc", -0.2 * 10),
        ("mnasnet", 0.8 * 0.5**-0.07),  # 0.8398...
        ("haq", 0.1 * (80 - 90)),
        ("agreement", -0.25),
    ],
)
def test_reward_by_hand(name, expected):
    assert build_reward(name)(OUTCOME) == pytest.approx(expected)


def test_twice_the_bound_costs_mnasnet_five_percent():
    dear = Outcome(OUTCOME.evaluation, OUTCOME.original, 12.0, 6.0, 12.0, 1.0)
    assert build_reward("mnasnet")(dear) == pytest.approx(0.8 * 0.9526, rel=1e-4)


def test_only_mnasnet_prices_the_cost_itself():
    assert [name for name in REWARDS if not REWARDS[name].hard] == ["mnasnet"]


def test_function_is_a_hard_reward_with_its_name():
    def minus_loss(outcome: Outcome) -> float:
        return -outcome.evaluation.loss

    reward = build_reward(minus_loss)
    assert (reward.name, reward.hard, reward(OUTCOME)) == ("minus_loss", True, -0.7)
    assert build_reward(reward) is reward


def test_users_function_is_imported_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "users_rewards.py").write_text("def half(o):\n    return o.cost / o.bound\nx = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    reward = build_reward("users_rewards:half")
    assert (reward.name, reward(OUTCOME)) == ("users_rewards:half", 0.5)
    with pytest.raises(
        ConfigError, match=r"Reward 'users_rewards:x': .*users_rewards.py has no function 'x'"
    ):
        build_reward("users_rewards:x")
    with pytest.raises(ConfigError, match=r"users_rewards.py has no function 'y'"):
        build_reward("users_rewards:y")


def test_module_that_is_missing_or_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "failing_rewards.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(
        ConfigError,
        match=r"Reward .* cannot import module 'no_such_rewards': ModuleNotFoundError.*importable",
    ):
        build_reward("no_such_rewards:f")
    with pytest.raises(ConfigError, match="cannot import module 'failing_rewards': SystemExit"):
        build_reward("failing_rewards:f")


def test_unknown_name_hints_at_the_nearest():
    with pytest.raises(
        ConfigError, match=r"accuracy, amc, .*got 'acuracy'. Did you mean 'accuracy'"
    ):
        build_reward("acuracy")
    with pytest.raises(ConfigError, match="got None"):
        build_reward(None)


def test_reward_may_be_a_tensor_of_one_number():
    assert Reward("tensor", lambda _: torch.tensor(0.5))(OUTCOME) == 0.5


@pytest.mark.parametrize("value", [None, "high", torch.zeros(2)])
def test_reward_must_be_a_number(value):
    with pytest.raises(ConfigError, match="Reward 'wrong' must return a number, got"):
        Reward("wrong", lambda _: value)(OUTCOME)


UNLABELLED = replace(
    OUTCOME,
    evaluation=classified(None, None, -0.25),
    original=classified(None, None, 0.0),
)


def test_agreement_alone_needs_no_labels():
    needs = {score.name: score.needs_targets for score in DEFAULT.scores}
    assert [name for name, reward in REWARDS.items() if not needs[reward.score]] == ["agreement"]
    assert REWARDS["agreement"](UNLABELLED) == -0.25


@pytest.mark.parametrize("name", ["accuracy", "amc", "haq", "mnasnet"])
def test_rewards_that_need_labels_are_refused_without(name):
    data = DataSet.from_tensors(torch.zeros(9, 1, 2, 2))
    with pytest.raises(ConfigError, match=f"reward={name} needs labels.*its images have none"):
        REWARDS[name].check_scores(DEFAULT, data)
    with pytest.raises(ConfigError, match=f"reward={name} goes by the score 'accuracy'.*agreement"):
        REWARDS[name](UNLABELLED)
    REWARDS["agreement"].check_scores(DEFAULT, data)


def test_reward_of_ones_own_may_do_without_labels_or_is_told_that_it_cannot():
    def mine(outcome):
        return 1 - outcome.evaluation.accuracy

    def plain(outcome):
        return outcome.evaluation.accuracy

    for function in (mine, plain):
        with pytest.raises(ConfigError, match=rf"reward={function.__name__} needs labels.*None"):
            build_reward(function)(UNLABELLED)
    assert build_reward(lambda outcome: 2 * outcome.evaluation.agreement)(UNLABELLED) == -0.5


def test_reward_is_told_which_scores_there_are():
    def mean_iou(outcome):
        return outcome.evaluation.scores["mean_iou"]

    seen = replace(OUTCOME, evaluation=Evaluation({"mean_iou": 0.5}))
    assert build_reward(mean_iou)(seen) == 0.5
    said = "reward=mean_iou goes by the score 'mean_iou', and there is none: the scores are acc"
    with pytest.raises(ConfigError, match=said):
        build_reward(mean_iou)(OUTCOME)
    with pytest.raises(ConfigError, match=r"failed in .*: KeyError: 'accuracy'"):  # of its own
        build_reward(lambda outcome: {}["accuracy"])(OUTCOME)


def test_reward_goes_by_no_score_that_the_objective_lacks():
    other = SimpleNamespace(scores=[NamedScore("mean_iou")])
    data = DataSet.from_tensors(torch.zeros(9, 1, 2, 2))
    with pytest.raises(ConfigError, match=r"by the score 'agreement'.* are mean_iou\. Give a rew"):
        REWARDS["agreement"].check_scores(other, data)


def test_why_labels_do_not_count_is_said():
    data = DataSet.from_tensors(torch.zeros(9, 1, 2, 2), torch.arange(9) % 3)
    REWARDS["accuracy"].check_scores(DEFAULT, data)
    with pytest.raises(ConfigError, match="none: they are of another kind"):
        REWARDS["accuracy"].check_scores(DEFAULT, data.without_labels("they are of another kind"))
