"""``amc search resume=<run>``, and compare: where it runs, and what may stand beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from amc.cli.check import check_options
from amc.cli.recipe import confirmed, objective_in
from amc.errors import ArtifactError, ConfigError
from amc.objectives import DEFAULT
from amc.study.artifact import RunRecord
from amc.utils.runs import RUN_FILE, as_option, code_of, functions_again

_BESIDE = ("resume", "resume_force", "jobs", *code_of({"settings": {}}))  # these to confirm them
_COMPLETED = ("env", "recovery", "search")
_MANY = ("-m", "--multirun")


def place_of_resumed(arguments: Sequence[str], command: str = "search") -> list[str]:
    """Overrides that let Hydra work in the folder of the run to resume; none for resume=null.

    Args:
        arguments: Of the command line, ``resume=`` among them.

    Raises:
        ArtifactError: The folder is not of this command.
        ConfigError: Options are given beside it that the run decides, or a sweep is asked for.
    """
    given = [argument for argument in arguments if "=" in argument and argument[0] != "-"]
    overrides = OverridesParser.create().parse_overrides(given)
    resume = [override for override in overrides if override.key_or_group == "resume"][-1]
    if resume.is_sweep_override() or any(flag in arguments for flag in _MANY):
        raise ConfigError("resume goes on with one run: give one folder, and no sweep (-m).")
    if resume.value() is None:
        return []
    folder = Path(str(resume.value())).expanduser()
    _check_folder(folder, command)
    for override in overrides:
        _check_beside(override)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


def _check_folder(folder: Path, command: str) -> None:
    if not (folder / RUN_FILE).exists() and (folder / f"{command}.log").is_file():
        raise ArtifactError(
            f"The run in {folder} was ended before it had begun: there is nothing to resume. "
            "Start it again."
        )
    kind = RunRecord.read(folder).kind
    if kind != command:
        raise ArtifactError(f"{folder} holds a run of amc {kind}: amc {command} cannot resume it.")


def _check_beside(override: Override) -> None:
    if override.key_or_group not in _BESIDE:
        raise ConfigError(
            f"{override.input_line} cannot stand beside resume: a resumed search takes all "
            "options from its run, and would not end as it would have with others. Leave it "
            "out, or start another search."
        )


def read_run(folder: Path, like: Mapping[str, Any], given: Mapping[str, str]) -> RunRecord:
    """The record of the run to resume, checked as options of the command line are.

    Args:
        like: Settings of a search of this version, at their defaults: for what an earlier
            version did not have.
        given: What stands beside resume on the command line, as text.

    Raises:
        ArtifactError: ``run.json`` is incomplete.
        ConfigError: It has values of other types than options have, or names a function that
            the user does not.
    """
    record = RunRecord.read(folder)
    # Earlier versions knew no others.
    settings = {"objective": DEFAULT.name, "decisions": None, **record.settings}
    for name, default in like.items():
        is_damaged = isinstance(default, Mapping) != _is_group(settings.get(name))
        if name not in settings or (is_damaged and name != "objective"):
            raise ArtifactError(f"{folder / RUN_FILE} lacks settings.{name}, or it is damaged.")
        if name in _COMPLETED:
            settings[name] = {**default, **settings[name]}
    objective = objective_in(settings)
    objective["name"] = objective.pop("objective")
    groups = {"network": record.network, "data": record.data, "objective": objective}
    check_options({**settings, **groups})
    code = code_of({**vars(record), "settings": settings})
    again = functions_again({name: text for name, text in code.items() if name not in given})
    for option, recorded in code.items():
        confirmed(option, as_option(recorded), given.get(option), again)
    return replace(record, settings=settings)


def _is_group(value: object) -> bool:
    return isinstance(value, Mapping)
