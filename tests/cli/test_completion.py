from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import amc

Offered = Callable[[str], list[str]]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> Offered:
    """What is offered to somebody who has typed a line."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        assert amc("-sc", "query=bash") == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        return shown.out.split()

    return ask


def test_commands_come_first(offered: Offered) -> None:
    assert offered("amc fi") == ["finetune"]
    assert {"search", "doctor"} <= set(offered("amc "))
    assert offered("amc xyz") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("amc search agent=dd", ["agent=ddpg"]),
        ("amc search budget.f", ["budget.fraction="]),
        ("amc profile net", ["network.", "network="]),
        ("amc finetune epo", ["epochs="]),
        # A name that has no file, and a flag, are no hindrance to what follows.
        ("amc search -m network=resnet18 search.eva", ["search.evaluations="]),
        ("amc doctor ", []),
        ("amc xyz a", []),
        ("amc search --flag budget.f", []),
    ],
)
def test_options_of_the_command_follow(line: str, expected: list[str], offered: Offered) -> None:
    assert offered(line) == expected


@pytest.mark.parametrize("before", [(), ("search",)])
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shells_get_hydras_script_for_amc(
    before: tuple[str, ...], shell: str, capsys: Output
) -> None:
    assert amc(*before, "-sc", f"install={shell}") == 0
    said = capsys.readouterr().out
    registered = {"bash": "hydra_bash_completion amc\n", "fish": "complete -c amc -x "}
    assert registered[shell] in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "amc"
    code = "import amc_command; amc_command.main()"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    script = """
        eval "$(amc -sc install=bash)"
        COMP_LINE='amc search agent=dd' COMP_POINT=19 COMP_CWORD=2
        hydra_bash_completion
        echo "offered: ${COMPREPLY[*]}"
    """
    home = Path(__file__).resolve().parents[2]
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(home)}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "offered: agent=ddpg"
