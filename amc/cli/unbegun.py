"""What a command leaves that ended before it had begun: nothing."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from amc.utils.runs import JOURNAL_FILE, RUN_FILE
from amc.utils.working import WORKING_FILE

_HYDRA_FOLDER = ".hydra"


def has_begun(folder: Path, command: str) -> bool:
    """Whether a run's folder holds more than how it was called and what it said."""
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return not found <= _unbegun_names(command) or _has_trials(folder / JOURNAL_FILE)


def _has_trials(journal: Path) -> bool:
    if not journal.is_file():
        return False
    try:
        with closing(sqlite3.connect(journal, timeout=0)) as database:
            return bool(database.execute("SELECT 1 FROM trials LIMIT 1").fetchall())
    except (sqlite3.Error, ValueError) as error:  # ValueError: what it says is no text
        return "no such table" not in str(error)  # killed while it was made


def remove_unbegun(folder: Path, command: str) -> None:
    """Remove the folder of a run that has not begun, as far as it can be removed."""
    _stop_logging_into(folder)
    with suppress(OSError):
        for name in _unbegun_names(command) - {_HYDRA_FOLDER}:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / _HYDRA_FOLDER, ignore_errors=True)
        folder.rmdir()


def _stop_logging_into(folder: Path) -> None:
    for logger in (logging.getLogger(), logging.getLogger("amc.run_log")):
        for handler in logger.handlers[:]:
            file = getattr(handler, "baseFilename", None)
            if file is not None and Path(file).parent == folder.absolute():
                logger.removeHandler(handler)
                handler.close()
                logger.addHandler(logging.NullHandler())  # none at all would print to stderr


def _unbegun_names(command: str) -> set[str]:
    return {_HYDRA_FOLDER, RUN_FILE, JOURNAL_FILE, WORKING_FILE, f"{command}.log"}
