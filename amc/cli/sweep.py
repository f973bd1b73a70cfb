"""A sweep: what its jobs are called, and the answer that it ends with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from amc.errors import AmcError

REPORT = "report"

_LONGEST = 100  # characters of a job's name: a file's may have 255
_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"
_begun: list[Path] = []  # folders of the sweeps that this process began


def job_name(number: object, told: str) -> str:
    """What the folder of a job is called, and so its run in TensorBoard: what tells it apart.

    Args:
        number: Of the job.
        told: The overrides that it has alone, as Hydra writes them.
    """
    plain = re.sub(r"[^\w.+-]+", "-", told.replace(",", "_")).strip("-_")[:_LONGEST]
    return f"{number}_{plain}" if plain else str(number)


OmegaConf.register_new_resolver("amc_job", job_name, replace=True)


class SweepFolder(Callback):
    """Hydra's word of where a sweep goes, as it begins."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        _begun.append(Path(str(config.hydra.sweep.dir)))


@contextmanager
def answered(report: Callable[[AmcError], int]) -> Iterator[list[int]]:
    """Ends a sweep that is begun in it with its table, however the sweep ends.

    Args:
        report: Prints an error, and says what exit code it means.

    Yields:
        What exit codes the answer's own errors mean, in the end.
    """
    _begun.clear()
    codes: list[int] = []
    try:
        yield codes
    finally:
        for folder in _begun:
            if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
                try:
                    _answer(folder)
                except AmcError as error:
                    codes.append(report(error))


def _answer(folder: Path) -> None:
    from amc.cli.report import show  # brings torch, as the jobs did
    from amc.study.overview import find_runs

    try:
        find_runs([folder])
    except AmcError:  # no job got so far as to have a folder
        return
    show([folder], folder)


def names_of_jobs(arguments: Sequence[str]) -> list[str]:
    """The override that lets jobs be named by what is swept, and not by all that is given.

    Args:
        arguments: Of the command line.
    """
    given = [text for text in arguments if "=" in text and not text.startswith("-")]
    if any(text.startswith(_EXCLUDED) for text in given):
        return []
    try:
        overrides = OverridesParser.create().parse_overrides(given)
    except HydraException:
        return []  # said when Hydra reads them
    same = [o.key_or_group for o in overrides if not o.is_sweep_override()]
    kept = [name for name in dict.fromkeys(same) if not name.startswith("hydra")]
    return [f"{_EXCLUDED}=[{','.join(kept)}]"] if kept else []


def folders_as_option(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``amc report`` with the folders, which stand alone there, as its option runs."""
    folders = [text for text in arguments if "=" not in text and not text.startswith("-")]
    others = [text for text in arguments if text not in folders]
    if not folders or any(text.startswith("runs=") for text in others):
        return list(arguments)
    quoted = ("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in folders)
    return [*others, f"runs=[{','.join(quoted)}]"]
