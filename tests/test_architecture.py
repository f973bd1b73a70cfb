"""The page on the architecture names what there is, in the order in which it may be imported."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
PAGE = (HOME / "docs" / "architecture.md").read_text(encoding="utf-8")
NAME = r"(?:amc|envs|agents)(?:\.\w+)*"


def _rooms(page: str) -> list[list[str]]:
    """The packages and modules that each row of the table names, top row first."""
    table = page.split("\n## Rooms\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return [re.findall(f"`({NAME})`", row) for row in rows]


def _packages_and_top_level_modules() -> set[str]:
    found = set()
    for package in ("amc", "envs", "agents"):
        for path in (HOME / package).rglob("*.py"):
            parts = path.relative_to(HOME).with_suffix("").parts
            if parts[-1] == "__init__" or len(parts) == 2:
                found.add(".".join(parts).removesuffix(".__init__"))
    return found


def _layers() -> list[list[str]]:
    """The rows of the import contract, the importing ones first."""
    settings = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c["type"] == "layers")
    return [re.findall(NAME, layer) for layer in layers]


def _out_of_order(rooms: list[list[str]], layers: list[list[str]]) -> list[str]:
    """What stands below something that it may import."""
    row_of = {name: row for row, names in enumerate(rooms) for name in names}
    known = [[name for name in names if name in row_of] for names in layers]
    ordered = [(name, index) for index, names in enumerate(known) for name in names]
    return [
        f"{upper} stands below {lower}"
        for upper, above in ordered
        for lower, below in ordered
        if above < below and row_of[upper] > row_of[lower]
    ]


def test_every_package_and_top_level_module_is_in_one_room() -> None:
    named = [name for names in _rooms(PAGE) for name in names]
    assert sorted(named) == sorted(_packages_and_top_level_modules())


def test_rooms_are_in_the_order_of_the_import_contract() -> None:
    assert _out_of_order(_rooms(PAGE), _layers()) == []


def test_room_that_stands_below_what_it_imports_is_named() -> None:
    rooms = _rooms("\n## Rooms\n\n| room | |\n|---|---|\n| A | `amc.b` |\n| B | `amc.a`, `amc.c` |")
    layers = [["amc.a"], ["amc.b", "amc.c"]]
    assert _out_of_order(rooms, layers) == ["amc.a stands below amc.b"]


def test_every_name_on_the_page_is_there() -> None:
    for name in set(re.findall(rf"\b{NAME}\b", PAGE)):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name
