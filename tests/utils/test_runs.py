from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from amc.errors import ArtifactError
from amc.utils.runs import NETWORK_FILES, check_network, resume_command, where_the_run_is


def _run(folder: Path, *, done: bool, newer_by_s: int = 0, **record: Any) -> Path:
    """A run's folder: with its three files of a network, or without."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": "search"} | record))
    for name in NETWORK_FILES if done else ():
        (folder / name).touch()
    os.utime(folder / "run.json", (1e9 + newer_by_s, 1e9 + newer_by_s))
    return folder


def _said(folder: Path) -> str:
    with pytest.raises(ArtifactError) as raised:
        check_network(folder)
    return str(raised.value)


def test_a_folder_with_all_files_of_a_network_passes(tmp_path: Path) -> None:
    check_network(_run(tmp_path / "run", done=True))


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    assert _said(tmp_path / "no").startswith(f"Run folder not found: {tmp_path / 'no'}.")


def test_an_unfinished_search_is_said_to_be_unfinished_and_how_to_go_on(tmp_path: Path) -> None:
    run = _run(tmp_path / "killed", done=False, network={"name": "mynet:build"})
    (run / "strategy.json").touch()  # the best so far, which a killed search has
    assert _said(run) == (
        f"{run} holds no compressed network (compressed.json is missing): give the folder of a "
        "finished search, of an applied policy, or the folder finetune in one of them. The search "
        f"in {run} is unfinished: amc search resume={run} network=mynet:build goes on with it."
    )


def test_an_unfinished_search_from_python_goes_on_in_python(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").touch()
    assert _said(tmp_path).endswith(
        f"The search in {tmp_path} is unfinished: amc.search(..., folder=..., resume=True), called "
        "as before, goes on with it."
    )


def test_an_unfinished_training_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "training.safetensors").touch()
    said = _said(tmp_path)
    assert "strategy.json is missing" in said
    assert "The fine-tuning in it is unfinished: the same command, or the same call" in said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("compare", "It holds a comparison, which keeps no networks"),
        ("apply", "the same amc apply starts it again"),
    ],
)
def test_a_run_of_another_command_says_why_it_has_no_network(
    kind: str, said: str, tmp_path: Path
) -> None:
    assert said in _said(_run(tmp_path / "run", done=False, kind=kind))


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"network": 3}', "\xff"])
def test_a_damaged_record_leaves_the_message_without_its_advice(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    assert "holds no compressed network" in _said(tmp_path)
    assert resume_command(tmp_path) == f"amc search resume={tmp_path}"


def test_the_finished_run_is_recommended_not_the_newer_one_that_was_killed(tmp_path: Path) -> None:
    done = _run(tmp_path / "a", done=True)
    _run(tmp_path / "b", done=False, newer_by_s=60)
    killed = _run(tmp_path / "c", done=False, newer_by_s=120)
    assert where_the_run_is(tmp_path) == (
        f" Choose one of the runs in it, as {done}. The search in {killed} is unfinished: "
        f"amc search resume={killed} goes on with it."
    )


def test_where_every_search_was_killed_none_is_recommended(tmp_path: Path) -> None:
    killed = _run(tmp_path / "a", done=False)
    assert where_the_run_is(tmp_path) == (
        f" The search in {killed} is unfinished: amc search resume={killed} goes on with it."
    )


def test_functions_that_a_run_names_are_named_again_beside_resume(tmp_path: Path) -> None:
    run = _run(
        tmp_path / "run",
        done=False,
        kind="compare",
        network={"name": "mynet:build"},
        device={"name": "boards:Mine"},
        settings={"reward": "mine:score"},
    )
    assert resume_command(run) == (
        f"amc compare resume={run} network=mynet:build reward=mine:score device.name=boards:Mine"
    )
