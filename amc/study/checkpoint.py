"""The learning agent's state on the disk, so that a killed search need not learn all again.

One file (`amc.utils.sealed`), replaced atomically: the state after some trial. Without it (or when
it is removed) a search is walked through again from its start, with the journal's evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from agents.state import AgentState
from agents.trial import Trial
from amc.study.artifact import CHECKPOINT_FILE
from amc.study.journal import Journal
from amc.utils.documents import OBJECT, WHOLE
from amc.utils.sealed import Sealed

_SEALED = Sealed(
    "amc-checkpoint",
    2,  # 2: a checksum
    "the checkpoint of a search",
    {"trials": WHOLE, "numbers": OBJECT},
    "Remove it: the search then goes through its recorded evaluations from the start.",
)


class CheckpointFile:
    """The state of a search after one of the trials in its journal."""

    def __init__(self, folder: Path | None, journal: Journal, every: int) -> None:
        """
        Args:
            folder: Of the run; None keeps nothing.
            every: Trials between two writings.
        """
        self._path = folder / CHECKPOINT_FILE if folder is not None else None
        self._journal, self._every, self._written = journal, every, 0
        if self._path is not None and not journal.trials:
            self._path.unlink(missing_ok=True)  # of a run whose journal was removed

    def load(self) -> tuple[list[Trial], AgentState | None]:
        """The recorded trials up to the state, and the state; none, if none was written.

        Raises:
            ArtifactError: The file is damaged, of another version, or of another run.
        """
        if self._path is None or not self._path.exists():
            return [], None
        tensors, document = _SEALED.read(self._path)
        trials = document["trials"]
        if trials > len(self._journal.trials):
            raise _SEALED.misfit(
                self._path,
                f"is from after evaluation {trials}, the journal ends with "
                f"{len(self._journal.trials)}: they are of different runs",
            )
        misfit, self._written = partial(_SEALED.misfit, self._path), trials
        return self._journal.trials[:trials], AgentState(tensors, document["numbers"], misfit)

    def note(self, trial: Trial, state: Callable[[], AgentState]) -> None:
        """Write the state if it is time to.

        Raises:
            StorageError: It cannot be written.
        """
        if self._path is None or trial.index // self._every == self._written // self._every:
            return
        now, self._written = state(), trial.index
        _SEALED.write(self._path, now.tensors, {"trials": trial.index, "numbers": now.numbers})

    def remove(self) -> None:
        """A finished search needs none."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
