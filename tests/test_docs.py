"""The pages: their links lead somewhere, and they make a site."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *HOME.glob("*.md"),
        *HOME.glob("docs/**/*.md"),
        HOME / "benchmarks" / "results" / "README.md",
        HOME / "outputs" / "README.md",
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_is_short_and_installs_before_it_measures() -> None:
    lines = (HOME / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    titles = [line for line in lines if line.startswith("## ")]
    assert titles[:3] == ["## Install", "## Compress your own network", "## Commands"]


def test_every_command_is_in_the_readme() -> None:
    from amc.cli.main import COMMANDS, TOOLS

    readme = (HOME / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*COMMANDS, *TOOLS) if f"| `amc {name}" not in readme] == []


@pytest.mark.skipif(
    not (find_spec("mkdocs") and find_spec("material") and find_spec("mkdocstrings")),
    reason="no mkdocs, mkdocs-material, mkdocstrings: make docs installs them",
)
def test_pages_make_a_site_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="tutorials/own_cnn.html"' in first
    assert (tmp_path / "benchmarks" / "results" / "breadth.csv").is_file()
    assert "Find the best smaller network" in (tmp_path / "api.html").read_text(encoding="utf-8")
