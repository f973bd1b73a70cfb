"""One search of a comparison: which agent, which seed, and the numbers it ended with."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import episode
from agents.searcher import SEARCHERS, build_searcher, searcher_class
from amc.errors import ArtifactError, ConfigError, StrategyError
from amc.strategy import Strategy
from amc.utils.documents import (
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    fault,
    is_number,
    list_of,
    object_of,
    or_null,
)
from amc.utils.files import read_document, write_text
from amc.utils.runs import CELLS_FOLDER
from envs.observation import feature_names

FORMAT_VERSION = 3  # 3: the scores of any objective
_TRACEBACK = "traceback.txt"  # beside what a search found: where one failed
_LABEL = re.compile(r"[\w.+-]+")  # it is part of a file's name

AgentLike = str | Mapping[str, Any]
"""A searcher's name, or a mapping of its name and settings; of these, ``label`` is what it is
called in the comparison, ``observation`` the features that it sees, ``evaluations`` how many
strategies it may try, where not as many as the others."""


@dataclass(frozen=True)
class Entry:
    """An agent of a comparison.

    Attributes:
        label: What it is called there; no other has it.
        name, settings: What `agents.searcher.build_searcher` takes.
        observation: Features that it sees.
        evaluations: Strategies that each of its searches may try.
    """

    label: str
    name: str
    settings: Mapping[str, Any]
    observation: tuple[str, ...]
    evaluations: int


@dataclass(frozen=True)
class Cell:
    """A search of a comparison: one agent, one seed."""

    entry: Entry
    seed: int

    def __str__(self) -> str:
        return f"{self.entry.label}, seed {self.seed}"

    def conditions(self) -> dict[str, str]:
        """What makes this search another than its neighbours, by name."""
        return {
            "agent": self.entry.name,
            "settings": json.dumps(self.entry.settings, sort_keys=True, default=list),
            "observation": json.dumps(self.entry.observation),
            "evaluations": str(self.entry.evaluations),
            "seed": str(self.seed),
        }


@dataclass(frozen=True)
class CellResult:
    """What a search of a comparison ended with.

    Attributes:
        label, seed: Of the cell.
        best_so_far: Best reward within the budget after every evaluation; None before the first
            strategy that meets it.
        strategy: The winner among the search's best, repaired, on the whole search split.
        search_reward, search: The winner's reward and scores, repaired, on the whole search split.
        test: Its scores on the test split.
        agent_seconds: Wall time of the search without its evaluations.
        seconds: Wall time of the search; an evaluation that was remembered counts as long as it
            took.
    """

    label: str
    seed: int
    best_so_far: tuple[float | None, ...]
    strategy: Strategy
    search_reward: float
    search: Mapping[str, float]
    test: Mapping[str, float]
    agent_seconds: float
    seconds: float

    @property
    def evaluations(self) -> int:
        """How many strategies were evaluated."""
        return len(self.best_so_far)

    @property
    def reward(self) -> float:
        """The best of the search, on its own images."""
        best = self.best_so_far[-1]
        assert best is not None
        return best

    def write(self, folder: Path, conditions: Mapping[str, str]) -> None:
        """Write the cell's file.

        Args:
            conditions: All that the search depends on, by name.
        """
        document = {"format": "amc-cell", "version": FORMAT_VERSION, **vars(self)}
        document |= {"search": dict(self.search), "test": dict(self.test)}
        document["strategy"] = json.loads(self.strategy.to_json())
        document["conditions"] = dict(conditions)
        write_text(_path(folder, self.label, self.seed, "json"), json.dumps(document) + "\n")
        _path(folder, self.label, self.seed, _TRACEBACK).unlink(missing_ok=True)


def read_cell(folder: Path, cell: Cell, conditions: Mapping[str, str]) -> CellResult | None:
    """What an earlier run of the comparison found; None where it did not come to this cell.

    Args:
        conditions: All that the search depends on, by name.

    Raises:
        ArtifactError: The file is damaged, or of a search under other conditions.
    """
    path = _path(folder, cell.entry.label, cell.seed, "json")
    if not path.exists():
        return None
    document = _document(path)
    try:
        found, then = _result_of(document), document["conditions"]
    except (ValueError, StrategyError) as error:
        raise fault(str(path), ArtifactError, _ADVICE)(f"is damaged: {error}") from None
    changed = sorted(k for k in {*conditions, *then} if conditions.get(k) != then.get(k))
    if changed:
        raise ArtifactError(
            f"{path} was searched under other conditions: {', '.join(changed)} changed. Compare "
            "in another folder, or as the first time."
        )
    return found


def strategy_of(path: Path) -> Strategy:
    """The strategy in the file of a cell, whatever it was searched under.

    Raises:
        AmcError: The file is damaged.
    """
    return Strategy.from_json(json.dumps(_document(path)["strategy"]), str(path))


def _document(path: Path) -> dict[str, Any]:
    return read_document(
        path, "Cell of the comparison", "amc-cell", FORMAT_VERSION, _FIELDS, advice=_ADVICE
    )


def write_traceback(folder: Path, cell: Cell, text: str) -> None:
    """Write where a cell's search failed, beside the files of those that ended."""
    write_text(_path(folder, cell.entry.label, cell.seed, _TRACEBACK), text)


def _path(folder: Path, label: str, seed: int, ending: str) -> Path:
    return folder / CELLS_FOLDER / f"{label}-seed{seed}.{ending}"


def _result_of(document: Mapping[str, Any]) -> CellResult:
    best = tuple(map(_float_or_none, document["best_so_far"]))
    if not best or best[-1] is None:
        raise ValueError("best_so_far holds no reward")
    return CellResult(
        label=document["label"],
        seed=document["seed"],
        best_so_far=best,
        strategy=Strategy.from_json(json.dumps(document["strategy"]), "strategy"),
        search={name: float(score) for name, score in document["search"].items()},
        test={name: float(score) for name, score in document["test"].items()},
        **{name: float(document[name]) for name in _NUMBERS},
    )


def _float_or_none(value: float | None) -> float | None:
    return None if value is None else float(value)


_ADVICE = "Remove it: it is made anew."
_NUMBERS = ("search_reward", "agent_seconds", "seconds")
_FINITE: Kind = (lambda value: is_number(value) and math.isfinite(value), "a finite number")
_FIELDS: dict[str, Kind] = {
    "label": TEXT,
    "seed": WHOLE,
    "best_so_far": list_of(or_null(_FINITE)),
    "strategy": OBJECT,
    "conditions": object_of(TEXT),
    **dict.fromkeys(("search", "test"), object_of(_FINITE)),
    **dict.fromkeys(_NUMBERS, _FINITE),
}


# -- what is asked for ---------------------------------------------------------------------


def cells_of(
    agents: Sequence[AgentLike] | None,
    seeds: Sequence[int],
    evaluations: int,
    observation: str | Sequence[str] | None = None,
    parts: Sequence[str] = (),
) -> list[Cell]:
    """The searches of a comparison: all agents at the first seed, all at the second, ...

    Args:
        agents: None: all that there are.
        evaluations: Of every search whose agent names no number of its own.
        observation: Features that agents see which name none of their own, as
            `envs.observation.feature_names` takes them, as ``parts``.

    Raises:
        ConfigError: No agents or no seeds, one of them twice, or one that cannot be.
    """
    entries = _entries(agents, evaluations, observation, parts)
    if isinstance(seeds, (str, int)) or not seeds or not all(type(s) is int for s in seeds):
        raise ConfigError(f"seeds must be a list of whole numbers such as [0,1,2], got {seeds!r}.")
    for seed in seeds:
        for number in (evaluations, *(entry.evaluations for entry in entries)):
            episode.check_search(number, seed)
    repeated = [seed for seed, times in Counter(seeds).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"seeds must differ, got {list(seeds)}: the same seed gives the same search twice."
        )
    return [Cell(entry, seed) for seed in seeds for entry in entries]


def _entries(
    agents: Sequence[AgentLike] | None,
    evaluations: int,
    observation: str | Sequence[str] | None,
    parts: Sequence[str],
) -> list[Entry]:
    given = list(SEARCHERS) if agents is None else agents
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence) or not given:
        raise ConfigError(
            "agents must be a list of at least one name, or of mappings of a name and settings, "
            f"as in [ddpg,{{name: ddpg, label: wide, hidden: [600]}}]; got {agents!r}. "
            f"Known: {', '.join(sorted(SEARCHERS))}."
        )
    entries = [_entry(agent, evaluations, observation, parts) for agent in given]
    repeated = [label for label, n in Counter(e.label for e in entries).items() if n > 1]
    if repeated:
        name = next(entry.name for entry in entries if entry.label == repeated[0])
        raise ConfigError(
            f"Two agents of the comparison are called {repeated[0]!r}. Name each once; one with "
            f"other settings needs a label: {{name: {name}, label: another, ...}}."
        )
    return entries


def _entry(
    agent: AgentLike,
    evaluations: int,
    observation: str | Sequence[str] | None,
    parts: Sequence[str],
) -> Entry:
    given = {"name": agent} if isinstance(agent, str) else agent
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ConfigError(
            f"An agent of a comparison must be a name, or a mapping with a name, got {agent!r}."
        )
    settings: dict[str, Any] = {str(key): value for key, value in given.items()}
    name = settings.pop("name")
    label = settings.pop("label", name.rpartition(":")[2])
    seen = settings.pop("observation", observation)
    number = settings.pop("evaluations", evaluations)
    searcher_class(name)
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ConfigError(
            f"The label of an agent must be letters, digits and . _ + - only, got {label!r}."
        )
    if not (seen is None or isinstance(seen, (str, Sequence))):
        raise ConfigError(f"observation of {label} must be a list of features, got {seen!r}.")
    if settings:  # a mistake of the user; an agent that cannot be made as it is only fails
        build_searcher(name, **settings)
    return Entry(label, name, settings, feature_names(seen, parts), number)
