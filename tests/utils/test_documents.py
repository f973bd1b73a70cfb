"""JSON within bounds, and fields of a kind: what was expected, what arrived, what to do."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from amc.errors import ArtifactError
from amc.utils.documents import (
    NUMBER,
    OBJECT,
    SWITCH,
    TEXT,
    WHOLE,
    Kind,
    check_fields,
    check_format,
    fault,
    list_of,
    object_of,
    or_null,
    parse_json,
    shown,
)

WRONG = fault("f.json", ArtifactError, "Remove it.")


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "grün \U0001f600"], "b": {}, "c": 10**39, "d": -(10**38)},
        json.loads("[" * 64 + "]" * 64),
        "a",
        -0.0,
        [math.inf, -math.inf],
    ],
)
def test_what_json_writes_comes_back(value: Any) -> None:
    found = parse_json(json.dumps(value), WRONG)
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON: Expecting value"),
        ("{", "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON: it is nested too deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 65 + "0" + "}" * 65, "nested more than 64 deep"),
        ("1" * 41, "a whole number has 41 digits, at most 40"),
        ("9" * 5000, "a whole number has 5000 digits"),
        ("[1e400]", "the number 1e400 is too large"),
        ('{"\\ud800": 1}', "it holds half a character"),
        ('["\\uD800"]', "it holds half a character"),
        ("[" + "[]," * 1_000_000 + "0]", "over 1000000 lists and objects"),
    ],
)
def test_json_beyond_its_bounds_is_refused(text: str, said: str) -> None:
    with pytest.raises(
        ArtifactError, match=rf"^f\.json is not .*{said.removeprefix('is not ')}"
    ) as caught:
        parse_json(text, WRONG)
    assert str(caught.value).endswith(". Remove it.")


def test_text_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.utils.documents.MOST_CHARACTERS", 10)
    with pytest.raises(ArtifactError, match="over 10 characters"):
        parse_json('"0123456789"', WRONG)


def test_whole_characters_written_as_two_halves_are_read() -> None:
    assert parse_json('"\\ud83d\\ude00"', WRONG) == "\U0001f600"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "is not of format 'x': expected a JSON object"),
        ({"format": "y", "version": 1}, "is not of format 'x'"),
        ({"format": "x"}, r"has version None; this amc reads 1\. Remove it"),
        ({"format": "x", "version": True}, "has version True"),
        ({"format": "x", "version": 2}, "has version 2; this amc reads 1"),
    ],
)
def test_document_of_another_format_is_refused(document: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        check_format(document, "x", 1, WRONG)


@pytest.mark.parametrize(
    ("kind", "fits", "not_"),
    [
        (TEXT, ["a"], ["", 3, None]),
        (WHOLE, [0, 2**63 - 1], [-1, 2**63, True, 1.0]),
        (NUMBER, [0, -1.5, math.nan], [True, "1", None]),
        (SWITCH, [True], [0, 1, None]),
        (or_null(WHOLE), [None, 3], [-1]),
        (list_of(WHOLE), [[], [1, 2]], [[1, -1], {}, None]),
        (object_of(TEXT), [{}, {"a": "b"}], [{"a": 1}, []]),
    ],
)
def test_kinds_accept_what_they_say(kind: Kind, fits: list[Any], not_: list[Any]) -> None:
    for value in fits:
        check_fields({"a": value}, {"a": kind}, WRONG)
    for value in not_:
        with pytest.raises(ArtifactError, match="'a' must be ") as caught:
            check_fields({"a": value}, {"a": kind}, WRONG)
        assert f"got {shown(value)}. Remove it." in str(caught.value)


def test_missing_field_is_named_with_what_it_must_be() -> None:
    said = r"f\.json is incomplete: 'a' must be an object, and is missing\. Remove it"
    with pytest.raises(ArtifactError, match=said):
        check_fields({}, {"a": OBJECT}, WRONG)


def test_value_in_a_message_is_short() -> None:
    value = {"a" * 9000: ["b" * 9000] * 9000, "c": [[[[[[1]]]]]]}
    assert len(shown(value)) < 900
