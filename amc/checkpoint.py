"""The learning agent's state on the disk, so that a killed search need not learn all again.

One safetensors file, replaced atomically: the state after some trial, its plain numbers as JSON
in the file's header. Without it (or when it is removed) a search is walked through again from
its start, with the journal's evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from agents.state import AgentState
from agents.trial import Trial
from amc.artifact import CHECKPOINT_FILE
from amc.errors import ArtifactError
from amc.files import read_tensors, write_tensors
from amc.journal import Journal

_FORMAT = "amc-checkpoint"
_VERSION = 1
_ADVICE = "Remove it: the search then goes through its recorded evaluations from the start."


class CheckpointFile:
    """The state of a search after one of the trials in its journal."""

    def __init__(self, folder: Path | None, journal: Journal, every: int) -> None:
        """
        Args:
            folder: Of the run; None keeps nothing.
            every: Trials between two writings.
        """
        self._path = folder / CHECKPOINT_FILE if folder is not None else None
        self._journal, self._every = journal, every
        if self._path is not None and not journal.trials:
            self._path.unlink(missing_ok=True)  # of a run whose journal was removed

    def load(self) -> tuple[list[Trial], AgentState | None]:
        """The recorded trials up to the state, and the state; none, if none was written.

        Raises:
            ArtifactError: The file is damaged, of another version, or of another run.
        """
        if self._path is None or not self._path.exists():
            return [], None
        tensors = read_tensors(self._path, f"Checkpoint ({_ADVICE})")
        trials, numbers = _read_header(self._path)
        if trials > len(self._journal.trials):
            raise ArtifactError(
                f"{self._path} is from after evaluation {trials}, the journal ends with "
                f"{len(self._journal.trials)}: they are of different runs. {_ADVICE}"
            )
        return self._journal.trials[:trials], AgentState(tensors, numbers)

    def note(self, trial: Trial, state: Callable[[], AgentState]) -> None:
        """Write the state if it is time to.

        Raises:
            StorageError: It cannot be written.
        """
        if self._path is None or trial.index % self._every:
            return
        now = state()
        header = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "trials": str(trial.index),
            "numbers": json.dumps(now.numbers),
        }
        write_tensors(self._path, now.tensors, header)

    def remove(self) -> None:
        """A finished search needs none."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _read_header(path: Path) -> tuple[int, dict[str, object]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if (header.get("format"), header.get("version")) != (_FORMAT, str(_VERSION)):
            raise ArtifactError(f"{path} is no checkpoint of this version of amc. {_ADVICE}")
        return int(header["trials"]), dict(json.loads(header["numbers"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a complete checkpoint: {error}. {_ADVICE}") from error
