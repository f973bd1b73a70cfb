from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.searcher import SEARCHERS
from amc.comparison.cells import CellResult, cells_of, read_cell
from amc.errors import ArtifactError, ConfigError
from amc.strategy import Bits, Strategy

CLIMB = "docs.examples.hill_climb:HillClimb"

RESULT = CellResult(
    label="wide",
    seed=3,
    best_so_far=(None, 0.1, 0.1 + 0.2),
    strategy=Strategy({"conv": 0.5}, {"conv": Bits(8, 32)}),
    search_reward=-0.25,
    search={"accuracy": 0.75, "agreement": -0.25},
    test={"accuracy": 0.7, "agreement": -0.3},
    agent_seconds=1.5,
    seconds=3.0,
)
(CELL,) = cells_of([{"name": "random", "label": "wide"}], [3], 1)
CONDITIONS = {"data": "abc", "threads": "1"}


# -- what is asked for ---------------------------------------------------------------------


def test_all_agents_search_with_a_seed_before_any_searches_with_the_next() -> None:
    cells = cells_of(["random", "uniform"], [5, 2], 1)
    assert [(cell.entry.label, cell.seed) for cell in cells] == [
        ("random", 5), ("uniform", 5), ("random", 2), ("uniform", 2)
    ]  # fmt: skip
    assert str(cells[0]) == "random, seed 5"


def test_all_agents_there_are_is_the_default() -> None:
    assert [cell.entry.name for cell in cells_of(None, [0], 1)] == list(SEARCHERS)


def test_an_agent_may_be_compared_with_itself_under_other_settings_and_features() -> None:
    few = {"name": "ddpg", "label": "few", "observation": ["rest", "saved"], "hidden": [8]}
    plain, other = cells_of(["ddpg", few], [0], 1, observation=["rest"])
    assert (plain.entry.name, plain.entry.label, plain.entry.settings) == ("ddpg", "ddpg", {})
    assert plain.entry.observation == ("rest",)
    assert (other.entry.name, other.entry.label) == ("ddpg", "few")
    assert other.entry.settings == {"hidden": [8]}
    assert other.entry.observation == ("rest", "saved")
    assert plain.conditions() != other.conditions()


def test_an_agent_may_have_more_evaluations_than_the_others() -> None:
    longer = {"name": "random", "label": "longer", "evaluations": 400}
    plain, other = cells_of(["random", longer], [0], 100)
    assert (plain.entry.evaluations, other.entry.evaluations) == (100, 400)
    assert other.entry.settings == {}
    differing = {k for k, value in plain.conditions().items() if other.conditions()[k] != value}
    assert differing == {"evaluations"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"agents": ["dpg"]}, "Unknown agent 'dpg'. Did you mean 'ddpg'"),
        ({"agents": []}, "a list of at least one name"),
        ({"agents": "ddpg"}, "a list of at least one name"),
        ({"agents": [3]}, "must be a name, or a mapping with a name, got 3"),
        ({"agents": [{"hidden": [3]}]}, "must be a name, or a mapping with a name"),
        ({"agents": ["ddpg", {"name": "ddpg"}]}, "Two agents of the comparison are called 'ddpg'"),
        (
            {"agents": [{"name": CLIMB}, {"name": CLIMB, "noise": 0.1}]},
            f"called 'HillClimb'.* needs a label: {{name: {CLIMB}, label",
        ),
        ({"agents": [{"name": "ddpg", "hiden": [3]}]}, "Did you mean 'hidden'"),
        ({"agents": [{"name": "random", "label": "a/b"}]}, r"letters, digits and \. _ \+ - only"),
        ({"agents": [{"name": "random", "observation": ["rst"]}]}, "unknown features"),
        ({"agents": [{"name": "random", "observation": 3}]}, "must be a list of features, got 3"),
        ({"agents": [{"name": "random", "observation": []}]}, "at least one of"),
        ({"seeds": []}, r"seeds must be a list of whole numbers such as \[0,1,2\], got \[\]"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": [0.5]}, "seeds must be a list"),
        ({"seeds": [1, 2, 1]}, r"seeds must differ, got \[1, 2, 1\]"),
        ({"seeds": [0, -1]}, "got seed=-1"),
        ({"evaluations": 0}, "at least 1 evaluation"),
        ({"agents": [{"name": "random", "evaluations": 0}]}, "at least 1 evaluation"),
        (
            {"agents": [{"name": "random", "evaluations": "2"}]},
            "evaluations must be a whole number",
        ),
    ],
)
def test_mistakes_are_said_in_one_message(asked: dict[str, Any], said: str) -> None:
    given = {"agents": ["random"], "seeds": [0], "evaluations": 1, **asked}
    with pytest.raises(ConfigError, match=said):
        cells_of(**given)


# -- what is kept --------------------------------------------------------------------------


def test_a_cell_is_read_back_to_the_bit(tmp_path: Path) -> None:
    RESULT.write(tmp_path, CONDITIONS)
    assert read_cell(tmp_path, CELL, CONDITIONS) == RESULT
    assert (RESULT.evaluations, RESULT.reward) == (3, 0.1 + 0.2)


def test_a_cell_that_was_not_searched_is_not_there(tmp_path: Path) -> None:
    replace(RESULT, seed=4).write(tmp_path, CONDITIONS)
    assert read_cell(tmp_path, CELL, CONDITIONS) is None


def test_a_cell_searched_under_other_conditions_names_what_changed(tmp_path: Path) -> None:
    RESULT.write(tmp_path, CONDITIONS)
    with pytest.raises(ArtifactError, match="other conditions: data, reward changed"):
        read_cell(tmp_path, CELL, {"data": "xyz", "threads": "1", "reward": "accuracy"})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 99}, r"has version 99; this amc reads 3\. Remove it"),
        ({"format": "amc-run"}, "is not of format 'amc-cell'"),
        ({"best_so_far": []}, "is damaged"),
        ({"best_so_far": [None]}, "is damaged"),
        ({"test": 0.7}, "is damaged"),
        ({"test": {"accuracy": "0.7"}}, "is damaged"),
        ({"test": {"accuracy": float("nan")}}, "is damaged"),
        ({"conditions": None}, "is damaged"),
    ],
)
def test_a_damaged_cell_is_an_error(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    RESULT.write(tmp_path, CONDITIONS)
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ArtifactError, match=said):
        read_cell(tmp_path, CELL, CONDITIONS)


def test_half_a_cell_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    RESULT.write(tmp_path, CONDITIONS)
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text(path.read_text()[:40])
    with pytest.raises(ArtifactError, match="Remove it: it is made anew"):
        read_cell(tmp_path, CELL, CONDITIONS)
