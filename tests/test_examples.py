"""What examples/ and docs/tutorials/ tell a reader to run, run."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from amc.cost.table import read_table
from envs.make import make_env
from envs.prior import PriorEnv
from tests.cli.command import amc
from tests.conftest import random_images

HOME = Path(__file__).resolve().parents[1]
EXAMPLES = HOME / "examples"
NOTEBOOK = EXAMPLES / "first_search.ipynb"


def _run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_notebook_keeps_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Jupyter where it is installed; otherwise its cells, one after the other."""
    if find_spec("nbclient") and find_spec("ipykernel"):
        import nbformat
        from nbclient import NotebookClient

        monkeypatch.setenv("PYTHONPATH", str(HOME))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        shown = "".join(output.get("text", "") for output in outputs)
    else:
        shown = _run("\n".join(_code_cells()), tmp_path)
    assert "best found" in shown
    assert "within the budget: True" in shown


def test_own_cnn_of_the_tutorial_is_trained_and_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = runpy.run_path(str(EXAMPLES / "own_cnn.py"))
    monkeypatch.setitem(own["write_photos"].__globals__, "load_digits", _few_digits)
    own["write_photos"]()
    assert len(list(Path("photos/train").glob("*/*.png"))) == 40
    assert 0 <= own["train"](epochs=1) <= 1
    assert own["build"]()(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def _few_digits() -> SimpleNamespace:
    return SimpleNamespace(images=np.zeros((50, 8, 8)), target=np.arange(50) % 10)


def test_list_of_the_board_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("network=tests.cli.nets:tiny", "data=digits", "device=todo", "todo=layers.csv")
    assert amc("profile", *options) == 0
    fill = runpy.run_path(str(EXAMPLES / "fill_table.py"))["fill"]
    rows = fill(Path("layers.csv"), Path("board.csv"))
    table = read_table(Path("board.csv"))
    assert len(table.rows) == rows > 0
    assert all(row.latency_ms >= 0.002 for row in table.rows.values())


@pytest.mark.parametrize("advised", [False, True])
def test_plain_stable_baselines_learns_in_the_environment(
    advised: bool, tiny_net: nn.Module
) -> None:
    """It runs; what it learns in how many steps is measured, not tested: docs/environment.md."""
    example = runpy.run_path(str(EXAMPLES / "sb3_ddpg.py"))
    env = make_env(tiny_net, random_images(), budget={"metric": "macs", "fraction": 0.6})
    assert len(example["random_rewards"](env, 2, 0)) == 2
    walked = PriorEnv(env) if advised else env
    agent, rewards = example["ddpg"](walked, 48, 0)
    assert len(rewards) == 12  # of 4 steps each
    assert example["greedy_reward"](agent, walked) <= 0
