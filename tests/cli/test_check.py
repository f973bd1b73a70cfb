from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from amc.cli.check import MISSING, check_options
from amc.errors import ConfigError, DataError


def _nested(key: str, value: Any) -> dict[str, Any]:
    group, _, name = key.rpartition(".")
    return {group: {name: value}} if group else {name: value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 0),
        ("search.evaluations", 1),
        ("env.channel_step", None),
        ("env.weight_bits", [8, 32]),
        ("env.observation", "plain"),
        ("env.observation", ["stride", "rest"]),
        ("env.observation", None),
        ("env.min_preserve_ratio", 1),
        ("network.options", {"width": 2}),
        ("recovery.batch_norm", False),
        ("policy", MISSING),  # whoever reads it says that it is missing
        ("data.mean", 0.1307),
        ("data.std", [0.1, 0.2, 0.3]),
        ("data.augment", []),
        ("device.anything", object()),  # checked where devices are made
        ("agent.anything", object()),
    ],
)
def test_fitting_values_pass(key: str, value: Any) -> None:
    check_options(_nested(key, value))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", -1, "a whole number from 0 to 9223372036854775807"),
        ("seed", True, "a whole number from 0 to 9223372036854775807"),
        ("seed", 1.0, "a whole number from 0 to 9223372036854775807"),
        ("data.seed", 2**63, "a whole number from 0 to 9223372036854775807"),
        ("epochs", None, "a whole number from 1"),
        ("search.images", "40", "a whole number from 1"),
        ("search.final_candidates", 0, "a whole number from 1"),
        ("search.workers", -1, "a whole number from 0"),
        ("search.store", 3, "true, false, a file, or the URL of a database"),
        ("search.proposals", 0, "a whole number from 1, or null"),
        ("learning_rate", "fast", "a number, or null"),
        ("learning_rate", True, "a number, or null"),
        ("env.channel_step", 0, "a whole number from 1, or null"),
        ("env.weight_bits", 8, "a list such as [8,32], or null"),
        ("env.activation_bits", [], "a list such as [8,32], or null"),
        ("env.activation_bits", ["8"], "a list such as [8,32], or null"),
        ("env.observation", [3], "plain, all, a list of names, [name,name], or null"),
        ("env.observation", [], "plain, all, a list of names, [name,name], or null"),
        ("env.observation", 3, "plain, all, a list of names, [name,name], or null"),
        ("recovery.least_squares", 3, "true or false"),
        ("reward", 3, "text"),
        ("network.name", "", "text"),
        ("network.options", 3, "names with values, {name: value}, or null"),
        ("data.root", 3, "text, or null"),
    ],
)
def test_other_values_are_refused_with_what_was_expected(
    key: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        check_options(_nested(key, value))
    assert str(raised.value) == f"{key} must be {expected}, got {value!r}."


def test_password_would_be_recorded_and_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match=r"search.store has a password.*PGPASSWORD") as raised:
        check_options(_nested("search.store", "mysql://me:secret@host/db"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("search.evaluation", "Did you mean search.evaluations?"),
        ("evaluations", "Did you mean search.evaluations?"),
        ("recovery.imags", "Did you mean recovery.images?"),
        (
            "network.qqq",
            "Known: network.checkpoint, network.name, network.options, network.outputs, "
            "network.pretrained.",
        ),
    ],
)
def test_unknown_options_are_named_with_near_ones(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_options(_nested(key, 1))
    assert str(raised.value) == f"Unknown option {key}. {hint}"


def test_a_value_in_place_of_a_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="search must be a group of options, got 3"):
        check_options({"search": 3})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"std": 0, "channels": 3}, "data.std must be greater than zero"),
        ({"mean": [0.1, 0.2], "channels": 3}, "data.mean must hold 1 number or 3"),
        ({"mean": "half"}, "data.mean must be a finite number, or a list"),
        ({"channels": 0}, "data.channels must be an integer >= 1"),
        ({"image_size": "big"}, "data.image_size must be an integer"),
        ({"augment": ["turn"]}, r"must be a list of flip, crop, got \['turn'\]"),
        ({"search_every": 1}, "data.search_every must be an integer >= 2"),
        ({"search": 5, "search_every": 5}, "not both"),
        ({"colour": 1}, r"Unknown data options \['colour'\]"),
    ],
)
def test_options_of_the_data_are_those_that_data_take(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_options({"data": {"name": "digits", "root": None, "seed": 0, **given}})


def test_options_are_checked_without_pytorch() -> None:
    code = "import sys, amc.cli.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
