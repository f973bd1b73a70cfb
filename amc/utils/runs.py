"""What makes a folder a run's: known without torch, so that a mistake is told at once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amc.errors import ArtifactError, StorageError

RUN_FILE = "run.json"
JOURNAL_FILE = "journal.sqlite"
STRATEGY_FILE = "strategy.json"
STRUCTURE_FILE = "compressed.json"
WEIGHTS_FILE = "compressed.safetensors"
TRAINING_FILE = "training.safetensors"
FINETUNE_FOLDER = "finetune"
CELLS_FOLDER = "cells"  # of a comparison: its searches
NETWORK_FILES = (STRATEGY_FILE, STRUCTURE_FILE, WEIGHTS_FILE)

LEAVING_RUNS = ("search", "apply", "compare")
"""Commands whose runs are reported: a sweep of them ends by laying its runs beside each other."""
RESUMED = ("search", "compare", "train")
"""Commands whose runs go on with ``resume=``."""
SEARCH_AGAIN = "amc.search(..., folder=..., resume=True)"


def check_run_folder(folder: Path, otherwise: str = "") -> None:
    """Check that the folder of a run is there.

    Args:
        otherwise: What else could be given, as the end of the message.

    Raises:
        ArtifactError: There is no such folder.
    """
    if folder.is_file():
        raise ArtifactError(
            f"{folder} is a file. Give the folder of a search: {folder.parent}.{otherwise}"
        )
    if not folder.is_dir():
        raise ArtifactError(
            f"Run folder not found: {folder}. Give the folder of a search.{otherwise}"
        )


def has_network(folder: Path) -> bool:
    """Whether a folder holds a compressed network: a run's that ended, or a fine-tuning's."""
    return all((folder / name).is_file() for name in NETWORK_FILES)


def check_network(folder: Path) -> None:
    """Check that a folder holds a compressed network.

    Raises:
        ArtifactError: There is no such folder, or it holds none; the message says why.
    """
    check_run_folder(folder)
    if has_network(folder):
        return
    missing = next(name for name in NETWORK_FILES if not (folder / name).is_file())
    why = how_to_go_on(folder) or where_the_run_is(folder)
    raise ArtifactError(
        f"{folder} holds no compressed network ({missing} is missing): give the folder of a "
        f"finished search, of an applied policy, or the folder finetune in one of them.{why}"
    )


def how_to_go_on(folder: Path) -> str:
    """Why the run or the training of a folder has no result, and what gives it one.

    Returns:
        A sentence, with a space before it; nothing where the folder is neither's.
    """
    kind = _record(folder).get("kind")
    if (folder / TRAINING_FILE).is_file():
        return (
            " The fine-tuning in it is unfinished: the same command, or the same call of "
            "amc.finetune, goes on with it (a network that came neither from amc.search nor from "
            "amc.load_compressed is not written)."
        )
    if kind == "search":
        return f" The search in {folder} is unfinished: {resume_command(folder)} goes on with it."
    if kind == "compare":
        return (
            " It holds a comparison, which keeps no networks: amc search finds one with the agent "
            "of your choice."
        )
    if kind == "train":
        return " It holds a training, whose policy amc apply and amc search take."
    if kind == "apply":
        return " The policy was not applied to its end: the same amc apply starts it again."
    if (folder / JOURNAL_FILE).is_file():
        return (
            f" The search in {folder} is unfinished: {SEARCH_AGAIN}, called as before, goes on "
            "with it."
        )
    return ""


@contextmanager
def told_how_to_go_on(folder: Path | None, call: str) -> Iterator[None]:
    """Where a file of a run cannot be written, say what goes on with the run.

    Args:
        folder: Of the run; None: it keeps nothing.
        call: What goes on with it in Python, if no command began it.

    Raises:
        StorageError: What is raised inside, with that advice.
    """
    try:
        yield
    except StorageError as error:
        if folder is None:
            raise
        again = resume_command(folder) if (folder / RUN_FILE).is_file() else call
        raise StorageError(
            f"{error} What was done is kept. To go on instead of beginning anew: {again}."
        ) from error


def resume_command(folder: Path) -> str:
    """The command that goes on with a run, whose functions the user must name again."""
    record = _record(folder)
    command = record.get("kind") if record.get("kind") in RESUMED else "search"
    return f"amc {command} {shlex.quote(f'resume={folder}')}{functions_again(code_of(record))}"


def code_of(record: Mapping[str, Any]) -> dict[str, object]:
    """Option -> name, of all in a run's record that may be a function or a class of the user's."""
    objective = _inside(record, "settings", "objective")
    found = {
        "network": _inside(record, "network", "name"),
        "data": _inside(record, "data", "name"),
        "objective": objective if not isinstance(objective, dict) else objective.get("name"),
        "objective.metric": objective.get("metric") if isinstance(objective, dict) else None,
        "decisions": _inside(record, "settings", "decisions"),
        "reward": _inside(record, "settings", "reward"),
        "device.name": _inside(record, "device", "name"),
    }
    settings = record.get("settings")
    if isinstance(settings, dict):
        found["agent"] = _inside(settings, "agent", "name")
        found["agents"] = _classes(settings.get("agents"))
    return found


def _classes(agents: object) -> str | None:
    """Those of a comparison's agents that are classes of the user's, as a list of options."""
    given = agents if isinstance(agents, list) else []
    names = [agent.get("name") if isinstance(agent, dict) else agent for agent in given]
    classes = dict.fromkeys(str(name) for name in names if ":" in str(name))
    return f"[{','.join(classes)}]" if classes else None


def functions_again(named: Mapping[str, object]) -> str:
    """What a later command needs beside a run: amc calls no function that only a file names.

    Args:
        named: Option -> what the run has there, a name or a function ``package.module:name``, or
            a list of them.

    Returns:
        The options that are functions, each after a space.
    """
    texts = {option: as_option(name) for option, name in named.items()}
    return "".join(f" {option}={text}" for option, text in texts.items() if ":" in text)


def as_option(value: object) -> str:
    """A value as the command line takes it."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def kind_of(folder: Path) -> str | None:
    """The command that a run's folder is of; None where it does not say."""
    kind = _record(folder).get("kind")
    return kind if isinstance(kind, str) else None


def _inside(record: Mapping[str, Any], group: str, key: str) -> object:
    found = record.get(group)
    return found.get(key) if isinstance(found, dict) else None


def _record(folder: Path) -> dict[str, Any]:
    """What is in a run's ``run.json``; empty where that cannot be read (`RunRecord.read` says)."""
    try:
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def where_the_run_is(folder: Path) -> str:
    """What to do where a folder is there and holds no ``run.json``: a sentence, or nothing."""
    inside = [run.parent for run in folder.glob(f"*/{RUN_FILE}")]
    if (folder.parent / RUN_FILE).is_file():
        return f" The run is the folder above it: {folder.parent}."
    if inside:
        return _which_of(inside)
    if (folder / STRATEGY_FILE).is_file():
        return (
            " It was written from Python, and only Python has its network and data: "
            "amc.load_compressed, amc.export_onnx, amc.finetune, and amc.search(folder=..., "
            "resume=True) go on from it."
        )
    return ""


def _which_of(runs: Sequence[Path]) -> str:
    """The newest run that came to its end, and the newest search that did not."""
    unfinished = [
        run for run in runs if not has_network(run) and _record(run).get("kind") == "search"
    ]
    ended = [run for run in runs if run not in unfinished]
    with_network = [run for run in ended if has_network(run)]
    said = f" Choose one of the runs in it, as {_newest(with_network or ended)}." if ended else ""
    if unfinished:
        newest = _newest(unfinished)
        said += f" The search in {newest} is unfinished: {resume_command(newest)} goes on with it."
    return said


def _newest(runs: Sequence[Path]) -> Path:
    return max(runs, key=lambda run: (run / RUN_FILE).stat().st_mtime)
