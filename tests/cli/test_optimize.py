from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from amc.cli import main as entry
from amc.cli import recipe
from amc.cli import search as search_recipe
from amc.cli.optimize import (
    check_directions,
    directions_for_optuna,
    directions_of,
    objectives_of,
    value_of,
)
from amc.errors import ConfigError
from tests.cli.command import SMALL, amc

Output = pytest.CaptureFixture[str]


class Direction(Enum):
    """As Optuna's plugin has it."""

    minimize = 1
    maximize = 2


def _result(**measured: Any) -> Any:
    """A search of a network of 200 MACs that found one of 50."""
    costs = {"macs": 50.0, "latency_ms": 0.25}
    return SimpleNamespace(
        strategy=None,
        best_reward=-0.5,
        comparison=[SimpleNamespace(search=measured.get("search", {"accuracy": 0.75}))],
        task=SimpleNamespace(
            strategy_costs=lambda _: costs,
            budget=SimpleNamespace(metric="macs"),
            costs=SimpleNamespace(original=200.0),
        ),
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("reward", -0.5),
        ("search_accuracy", 0.75),
        ("cost", 50 / 200),
        ("latency_ms", 0.25),
        (["macs"], 50.0),
        (["reward", "latency_ms"], [-0.5, 0.25]),
    ],
)
def test_a_search_returns_its_objective_or_a_list_of_several(
    option: str | list[str], value: float | list[float]
) -> None:
    assert value_of(_result(), objectives_of(option)) == value


def test_an_objective_that_the_search_does_not_have_is_named_beside_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"no search_accuracy .* Known here: macs, latency_ms, r"):
        value_of(_result(search={}), ["search_accuracy"])


@pytest.mark.parametrize(
    ("sweeper", "directions"),
    [
        ({"_target_": "BasicSweeper", "max_batch_size": None, "params": None}, None),
        ({"direction": Direction.maximize}, ["maximize"]),
        ({"direction": ["minimize", "maximize"]}, ["minimize", "maximize"]),
        ({"optim": {"maximize": False}}, ["minimize"]),
        ({"ax_config": {"experiment": {"minimize": False}}}, ["maximize"]),
    ],
)
def test_which_way_a_sweeper_optimises_is_read_from_its_options(
    sweeper: dict[str, Any], directions: list[str] | None
) -> None:
    assert directions_of(sweeper) == directions


def test_a_sweeper_that_goes_the_wrong_way_is_refused_with_the_right_one() -> None:
    check_directions("search", ["reward"], {"direction": "maximize"})
    with pytest.raises(ConfigError) as raised:
        check_directions("search", ["reward", "cost"], {"direction": "minimize"})
    assert str(raised.value) == (
        "The sweeper is to minimize, where optimize=[reward,cost] is to [maximize,minimize]. "
        "For Optuna: hydra.sweeper.direction=[maximize,minimize]."
    )


def test_a_command_without_objective_cannot_be_optimised() -> None:
    with pytest.raises(ConfigError, match=r"profile returns no objective .* sweep amc search"):
        check_directions("profile", [], {"direction": "minimize"})


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["seed=1"], []),
        (["-m", "hydra/sweeper=optuna"], ["hydra.sweeper.direction=maximize"]),
        (
            ["-m", "hydra/sweeper=optuna", "optimize=[cost, reward]"],
            ["hydra.sweeper.direction=[minimize,maximize]"],
        ),
        (["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=minimize"], []),
        (["-m", "hydra/sweeper=optuna", "optimize=speed"], []),
    ],
)
def test_optuna_is_told_which_way_to_go_unless_the_user_does(
    arguments: list[str], added: list[str]
) -> None:
    assert directions_for_optuna(arguments) == added


def test_what_a_job_returns_reaches_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[object] = []
    real = entry.__globals__["hydra"].main

    def listening(**options: Any) -> Any:
        def decorate(job: Any) -> Any:
            def heard(config: Any) -> None:
                returned.append(job(config))

            heard.__module__ = job.__module__
            return real(**options)(heard)

        return decorate

    monkeypatch.setattr(entry.__globals__["hydra"], "main", listening)
    monkeypatch.setattr(search_recipe, "run", lambda config: recipe.Ended(objective=[0.5, 2.0]))
    assert amc("search", *SMALL) == 0
    assert returned == [[0.5, 2.0]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimize=speed"], "optimize must be one of reward, search_<score>, cost, "),
        (["optimize=[reward,reward]"], "optimize must be one of reward, search_<score>, cost, "),
        (["optimize=[]"], "optimize must be one of reward, search_<score>, cost, "),
        (
            ["~device", "budget=macs", "optimize=latency_ms"],
            "optimize=latency_ms needs a device that prices it, and there is no device.",
        ),
    ],
)
def test_a_mistaken_objective_is_said_before_anything_is_read(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(recipe, "data_of", lambda _: pytest.fail("data were read"))
    assert amc("search", *SMALL, *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_job_that_fails_under_a_sweeper_that_optimises_is_no_trial_of_worth_none(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(
        HydraConfig, "get", staticmethod(_optimising(HydraConfig.get)), raising=True
    )
    assert amc("search", "-m", "seed=0,1", "budget.fraction=5", *SMALL) == 2
    assert capsys.readouterr().err.count("error: budget.fraction=5 is already met") >= 1


def _optimising(get: Any) -> Any:
    """Hydra's configuration, as if its sweeper were one that optimises."""

    def changed() -> Any:
        found = get().copy()
        found._set_flag("struct", False)
        found._set_flag("readonly", False)
        found.sweeper = {"direction": "maximize"}
        return found

    return changed
