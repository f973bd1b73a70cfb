"""The journal of a run: every finished evaluation, so that a killed search loses none.

A SQLite file in the run folder. A trial is on the disk before the search goes on, in one
transaction. On resuming, the searcher walks again through what it did; its evaluations are
recalled from here and cost nothing, and each must come out as it did before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from agents.trial import Trial
from amc.errors import ArtifactError, StorageError
from amc.problem.evaluate import Evaluation
from amc.strategy import Strategy
from amc.study import artifact
from amc.utils.conditions import code_digests, machine_and_libraries
from amc.utils.database import Database
from amc.utils.documents import (
    NUMBER,
    OBJECT,
    Fault,
    Kind,
    check_fields,
    object_of,
    or_null,
    parse_json,
)
from amc.utils.runs import JOURNAL_FILE

Origin = Mapping[str, Mapping[str, Any]]
"""Section -> name -> value: all that a search's outcome depends on."""

_BUSY_S = 1.0  # a search that runs holds its journal to its end
_ADVICE = "The run cannot go on: search again, in another folder."
_TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE trials (
        evaluation INTEGER PRIMARY KEY, strategy TEXT NOT NULL, reward TEXT NOT NULL,
        measured TEXT NOT NULL, costs TEXT NOT NULL, diagnostics TEXT NOT NULL,
        meets_budget INTEGER NOT NULL
    )""",
)
_APPEND = "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)"
_NOTE = "INSERT OR REPLACE INTO about VALUES (?, ?)"
_LISTED = 4  # changed files named in a message


class Journal:
    """The finished evaluations of one search; without a folder, in memory only.

    Holds its file locked until it is closed: two processes cannot go on with the same run.

    Attributes:
        trials: What is recorded.
        aims: Bounds that the search was told to aim at later on, in order.
    """

    def __init__(self, folder: Path | None, *, resume: bool = False) -> None:
        """Open the journal of a run, or begin one.

        Raises:
            ArtifactError: The folder holds a search already and ``resume`` is False; or the
                search is finished; or the file is damaged.
            StorageError: The file cannot be written, or another process runs the search.
        """
        self._path = folder / JOURNAL_FILE if folder is not None else None
        self._origin: Origin | None = None
        self._stale = 0  # so many first trials were evaluated under other conditions,
        self._replaceable = 0  # and so many may come out differently after a forced resume
        self.trials: list[Trial] = []
        self.aims: list[float] = []
        self._database = Database(self._path, _TABLES, _ADVICE, busy_s=_BUSY_S)
        try:
            self._lock()
            self._read()
            self._check(resume)
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        """All that the file holds, checked."""
        rows = self._rows("SELECT * FROM trials ORDER BY 1")
        with self._database.explaining():
            self.trials = [_trial(row, self._wrong) for row in rows]
            self.aims = [float(bound) for bound in self._json("aims", _BOUNDS) or ()]
            self._origin = self._json("origin", _ORIGIN)
            self._stale, self._replaceable = (
                self._trials_so_far(self._about(name)) for name in ("stale", "replaceable")
            )

    def _json(self, name: str, kind: Kind) -> Any:
        """What is noted under a name, as JSON; None where nothing is."""
        text = self._about(name)
        if text is None:
            return None
        document = {name: parse_json(text, self._wrong)}
        check_fields(document, {name: kind}, self._wrong)
        return document[name]

    def _trials_so_far(self, text: str | None) -> int:
        count = int(text or 0)
        if not 0 <= count <= len(self.trials):
            raise ValueError(f"{count} of {len(self.trials)} evaluations")
        return count

    def _wrong(self, said: str) -> ArtifactError:
        return self._database.damaged(f"what it holds {said}")

    def _check(self, resume: bool) -> None:
        if self.trials and not resume:
            raise ArtifactError(
                f"{self._folder} already holds a search. Nothing was changed; resume it, or "
                "choose another folder."
            )
        if self._about("finished") is not None:
            raise ArtifactError(f"The search in {self._folder} is finished: nothing to resume.")
        if [trial.index for trial in self.trials] != list(range(1, len(self.trials) + 1)):
            raise ArtifactError(f"{self._path} lacks evaluations in between. {_ADVICE}")

    def _lock(self) -> None:
        self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._database.execute("PRAGMA synchronous=FULL")
        with self._database.transaction():
            self._database.execute("BEGIN EXCLUSIVE")
            if not self._database.check_schema():
                for statement in _TABLES:
                    self._database.execute(statement)

    def begin(self, origin: Origin, evaluation_key: str, *, force: bool = False) -> bool:
        """Note what the search is started with, or compare it with what it was started with.

        Args:
            force: Go on although something changed. A trial that then comes out differently
                takes the place of the recorded one, and of all that came after it.

        Returns:
            Whether all recorded evaluations still hold. Those that do not are left out of
            `evaluations`, here and after a kill, until they are replaced.

        Raises:
            ArtifactError: Something changed that the outcome depends on; names it.
        """
        plain = json.loads(json.dumps(origin))
        if self._origin is None or not self.trials:
            self._note_begun(plain, evaluation_key)
            return True
        changed = differences(self._origin, plain)
        if changed and not force:
            raise ArtifactError(
                f"The run in {self._folder} was started otherwise: {'; '.join(changed)}. "
                "Resumed, it would not end as it would have. Undo the change, search again in "
                "another folder, or go on anyway with resume_force=true."
            )
        if self._about("evaluation_key") != evaluation_key:
            self._stale = len(self.trials)
        if changed:
            self._replaceable = len(self.trials)
            self._note_begun(plain, evaluation_key)
        return self._stale == 0

    def _note_begun(self, origin: Origin, evaluation_key: str) -> None:
        # In one transaction: with the new key alone, a search that is killed before it has
        # replaced a trial would be resumed from the old numbers.
        self._note_about(
            origin=json.dumps(origin),
            evaluation_key=evaluation_key,
            stale=str(self._stale),
            replaceable=str(self._replaceable),
        )
        self._origin = origin

    def evaluations(self) -> dict[Strategy, Evaluation]:
        """What was found of every strategy in the journal, as far as it still holds."""
        return {trial.strategy: trial.evaluation for trial in self.trials[self._stale :]}

    def is_new(self, trial: Trial) -> bool:
        """Whether a trial is not recorded yet.

        Raises:
            ArtifactError: Another one is recorded in its place.
            StorageError: That one is to be replaced, and the file cannot be written.
        """
        if trial.index > len(self.trials):
            return True
        recorded = self.trials[trial.index - 1]
        if (recorded.strategy, recorded.reward) == (trial.strategy, trial.reward):
            return False
        if trial.index > self._replaceable:
            raise ArtifactError(
                f"Evaluation {trial.index} of the run in {self._folder} came out differently than "
                f"it is recorded (reward {trial.reward!r}, not {recorded.reward!r}). The run is "
                "left as it was; this machine does not repeat its computations to the bit, or "
                "the journal was changed. Search again in another folder."
            )
        self._take_back(trial.index)
        return True

    def _take_back(self, index: int) -> None:
        """Remove a trial and all that came after it."""
        stale, replaceable = (min(n, index - 1) for n in (self._stale, self._replaceable))
        left = {"stale": str(stale), "replaceable": str(replaceable)}
        with self._database.transaction():
            self._database.execute("DELETE FROM trials WHERE evaluation >= ?", index)
            # What was aimed at was measured of trials that no longer hold.
            self._database.execute("DELETE FROM about WHERE name = 'aims'")
            self._database.execute_many(_NOTE, list(left.items()))
        self._stale, self._replaceable = stale, replaceable
        del self.trials[index - 1 :]
        self.aims.clear()

    def append(self, trial: Trial) -> None:
        """Record a trial; when this returns, it is on the disk.

        Raises:
            StorageError: It cannot be written.
        """
        with self._database.transaction():
            self._database.execute(_APPEND, *_row(trial))
        self.trials.append(trial)

    def aim(self, bound: float) -> None:
        """Record that the search goes on under another bound, in the budget's unit."""
        self._note_about(aims=json.dumps([*self.aims, bound]))
        self.aims.append(bound)

    def finish(self) -> None:
        """Say that there is nothing to resume any more."""
        self._note_about(finished="true")

    def close(self) -> None:
        """Let the file go."""
        self._database.close()

    @property
    def _folder(self) -> Path | None:
        return self._path.parent if self._path is not None else None

    def _about(self, name: str) -> str | None:
        rows = self._rows("SELECT value FROM about WHERE name = ?", name)
        return str(rows[0][0]) if rows else None

    def _note_about(self, **values: str) -> None:
        with self._database.transaction():
            self._database.execute_many(_NOTE, list(values.items()))

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.rows(query, *values)


def _row(trial: Trial) -> tuple[object, ...]:
    measured = {**trial.evaluation.scores, "seconds": trial.evaluation.seconds}
    return (
        trial.index,
        trial.strategy.to_json(),
        repr(trial.reward),
        json.dumps(measured),
        json.dumps(dict(trial.evaluation.costs)),
        json.dumps(dict(trial.diagnostics)),
        int(trial.meets_budget),
    )


_NUMBERS_BY_NAME = object_of(NUMBER)
_JSON_COLUMNS: dict[str, Kind] = {
    "measured": object_of(or_null(NUMBER)),  # null: a score that earlier versions lacked
    "costs": _NUMBERS_BY_NAME,
    "diagnostics": _NUMBERS_BY_NAME,
}
_BOUNDS: Kind = (
    lambda value: isinstance(value, list) and all(type(bound) is float for bound in value),
    "a list of numbers",
)
_ORIGIN: Kind = object_of(OBJECT)


def _trial(row: Sequence[Any], wrong: Fault) -> Trial:
    index, strategy, reward, *texts, meets_budget = row
    columns = {
        name: parse_json(text, wrong) for name, text in zip(_JSON_COLUMNS, texts, strict=True)
    }
    check_fields(columns, _JSON_COLUMNS, wrong)
    measured = columns["measured"]
    check_fields(measured, {"seconds": NUMBER}, wrong)
    seconds = measured.pop("seconds")
    scores = {name: value for name, value in measured.items() if value is not None}
    return Trial(
        index=index,
        strategy=Strategy.from_json(strategy, "the journal's strategy"),
        evaluation=Evaluation(scores, columns["costs"], seconds),
        reward=float(reward),
        diagnostics=columns["diagnostics"],
        meets_budget=bool(meets_budget),
    )


def is_finished(folder: Path) -> bool:
    """Whether the search of a run folder came to its end.

    Raises:
        ArtifactError: The journal is damaged.
        StorageError: Another process runs the search.
    """
    if not (folder / JOURNAL_FILE).is_file():  # of an earlier version, or of one that did not begin
        return (folder / f"{artifact.COMPARISON_FILE}.csv").is_file()
    return bool(_looked_up(folder, "SELECT 1 FROM about WHERE name = 'finished'"))


def counted(folder: Path) -> int:
    """How many evaluations the journal of a run folder holds; 0 where another process has it.

    Raises:
        ArtifactError: The journal is damaged.
    """
    if not (folder / JOURNAL_FILE).is_file():
        return 0
    try:
        found = _looked_up(folder, "SELECT count(*) FROM trials")
    except StorageError:
        return 0
    return int(found[0][0]) if found else 0


def _looked_up(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of a journal that no process has; none of one that was killed while it was made."""
    database = Database(folder / JOURNAL_FILE, _TABLES, _ADVICE, busy_s=_BUSY_S)
    try:
        return database.rows(query) if database.check_schema() else []
    finally:
        database.close()


# -- what a search depends on --------------------------------------------------------------


def origin_of(task: Mapping[str, str], config: Mapping[str, Any]) -> Origin:
    """All that a search's outcome depends on: task, settings, code, machine.

    Args:
        task: `CompressionTask.fingerprints`.
        config: The search's own settings.
    """
    machine = machine_and_libraries()
    return {"task": task, "config": config, "machine": machine, "code": code_digests()}


# -- what changed --------------------------------------------------------------------------


def differences(before: Origin, now: Origin) -> list[str]:
    """What differs between two origins, in words: "config changed: agent.actor_lr 0.1 -> 0.2"."""
    return [line for section in {**before, **now} if (line := _difference(section, before, now))]


def _difference(section: str, before: Origin, now: Origin) -> str:
    old, new = (_flat(origin.get(section, {})) for origin in (before, now))
    changed = [name for name in sorted({**old, **new}) if old.get(name) != new.get(name)]
    if not changed:
        return ""
    if all(_is_digest(side.get(name)) for side in (old, new) for name in changed if name in side):
        more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
        return f"{section} changed: {', '.join(changed[:_LISTED])}{more}"
    values = (f"{name} {old.get(name)} -> {new.get(name)}" for name in changed)
    return f"{section} changed: {', '.join(values)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    parts = (
        _flat(value, f"{prefix}{name}.").items()
        if isinstance(value, Mapping)
        else [(f"{prefix}{name}", value)]
        for name, value in values.items()
    )
    return dict(chain.from_iterable(parts))


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None
