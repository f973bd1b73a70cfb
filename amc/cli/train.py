"""``amc train``: learn a policy over many networks, budgets and devices."""

from __future__ import annotations

import csv
import io
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table

from agents.experience import load_experience
from agents.trust import SHIPPED, SHIPPED_FOLDER
from agents.trust_fit import FitSettings, Remembered
from amc import __version__
from amc.cli import recipe
from amc.cli.offered import offer_names
from amc.cli.search import settings_of
from amc.cost.budget import DEVICE_METRICS
from amc.errors import ArtifactError, ConfigError
from amc.problem.store import open_store
from amc.problem.workers import PROCESSES
from amc.report.tables import significant
from amc.study.artifact import RunRecord
from amc.study.train import Source, TaskRow, Trained, TrainSettings, train
from amc.utils.files import write_text
from amc.utils.runs import RUN_FILE, resume_command

TABLE_FILE = "tasks.csv"
_SEVERAL = {"name": "several"}  # networks and data: the tasks say which
_SETTINGS = ("episodes", "rounds", "noise", "seed", "workers", "workers_on")
_PREPARED = ("env", "recovery", "search", "decisions", "objective")
_OWN = (
    "network",
    "data",
    "device",
    "budget",
    "env",
    "recovery",
    "decisions",
    "objective",
    "search",
)


def run(config: DictConfig) -> recipe.Ended:
    """Prepare the tasks, evaluate, learn, write, show."""
    if config.resume is not None:
        folder = Path(config.resume).expanduser()
        options = _resumed(folder)
    else:
        folder, options = recipe.run_folder(), recipe.plain(config)
        del options["resume"]
        _begin(folder, options)
    settings = TrainSettings(
        **{name: options[name] for name in _SETTINGS},
        fit=FitSettings(**options["fit"]),
    )
    sources = [*_of_tasks(options["tasks"]), *_of_runs(options["runs"])]
    experience = _experience(options["start"])
    if not sources and not experience:
        raise ConfigError(
            "There is nothing to learn from: give tasks=['network=... data=... budget=...'], "
            "runs=[<folder of a search>], or start=shipped."
        )
    store = open_store(options["store"])
    with closing(store) if store is not None else nullcontext():
        trained = train(
            sources,
            settings,
            reward=options["reward"],
            store=store,
            folder=folder,
            experience=experience,
            recall=options["recall"],
            origin=_origin(options),
        )
    write_text(folder / TABLE_FILE, _csv(trained.rows))
    _show(trained, folder)
    return recipe.Ended(trained.interrupted)


def _begin(folder: Path, options: Mapping[str, Any]) -> None:
    """Write the record; in the folder of the same training, go on with that one.

    Raises:
        ArtifactError: The folder holds another run.
    """
    if (folder / RUN_FILE).exists():
        record = RunRecord.read(folder)
        if record.kind == "train" and dict(record.settings) == dict(options):
            return
    RunRecord("train", _SEVERAL, _SEVERAL, {}, {}, options).write(folder)


def _resumed(folder: Path) -> dict[str, Any]:
    options = {"workers": 0, "workers_on": PROCESSES, **RunRecord.read(folder).settings}
    code = [text for text in options.get("tasks", ()) if re.search(r"[\w.]+:\w", str(text))]
    if code:
        raise ConfigError(
            f"The training in {folder} has tasks of code of yours ({code[0]}), and amc calls no "
            "code that only a file names: give the same command again, with "
            f"hydra.run.dir={folder}, and it goes on."
        )
    return options


def _experience(start: str) -> list[Remembered]:
    if start == "none":
        return []
    folder = SHIPPED_FOLDER if start == SHIPPED else Path(start).expanduser()
    if not folder.is_dir():
        raise ArtifactError(
            f"start must be none, {SHIPPED}, or the folder of a training, got {start!r}: there is "
            "no such folder."
        )
    return load_experience(folder)


# -- tasks ---------------------------------------------------------------------------------


def _of_tasks(texts: Sequence[str]) -> list[Source]:
    """Tasks by the options of a search, as texts; a value may be several, as in a sweep.

    Raises:
        ConfigError: A text is no list of options, or not of a search.
    """
    records = [record for text in texts for record in _records(text)]
    return _sources(records)


def _records(text: object) -> list[RunRecord]:
    if not isinstance(text, str):
        raise ConfigError(
            "tasks must be a list of texts, each with options of amc search such as "
            f"'network=resnet20 budget.fraction=0.5,0.3', got {text!r}."
        )
    try:
        overrides = OverridesParser.create().parse_overrides(shlex.split(text))
        swept = [
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [str(one.input_line)]
            for one in overrides
        ]
        return [_record(list(chosen), overrides) for chosen in itertools.product(*swept)]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"tasks: {text!r} cannot be read as options of amc search: {first}"
        ) from error


def _record(chosen: list[str], overrides: Sequence[Override]) -> RunRecord:
    for override in overrides:
        group = override.key_or_group.partition(".")[0]
        if group not in _OWN:
            raise ConfigError(
                f"tasks: {override.input_line} is no option of a task. A task has "
                f"{', '.join(_OWN)}; how it is learned from is said once, beside tasks."
            )
    offer_names(chosen)
    config = hydra.compose(config_name="search", overrides=chosen)
    return recipe.record_of("search", config, settings_of(config))


def _of_runs(folders: Sequence[str]) -> list[Source]:
    records = []
    for folder in folders:
        record = RunRecord.read(Path(folder).expanduser())
        if record.kind not in ("search", "apply"):
            raise ConfigError(f"runs: {folder} holds a run of amc {record.kind}, no search.")
        for option, part in (("network", record.network), ("data", record.data)):
            if ":" in str(part.get("name")):
                raise ConfigError(
                    f"runs: the run in {folder} has {option}={part['name']}. amc calls no code "
                    "that only a file names: give its options under tasks instead."
                )
        records.append(record)
    return _sources(records)


def _sources(records: Sequence[RunRecord]) -> list[Source]:
    """Records that differ in the bound alone are prepared once, for the loosest."""
    alike: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.budget.get("fraction") is None or record.budget.get("absolute") is not None:
            raise ConfigError(
                "A task's budget is a fraction of the original's cost, so that it means the same "
                f"for all networks: give budget.fraction, got {dict(record.budget)}."
            )
        budget = {**record.budget, "fraction": None}
        settings = {name: record.settings[name] for name in _PREPARED}
        key = repr((record.network, record.data, record.device, budget, settings))
        alike.setdefault(key, []).append(record)
    sources = []
    for group in alike.values():
        fractions = tuple(dict.fromkeys(float(one.budget["fraction"]) for one in group))
        loosest = max(group, key=lambda one: float(one.budget["fraction"]))
        recipe.check_network(loosest.network, loosest.data)
        recipe.options_of(loosest)
        family = f"{loosest.network['name']}{_said(loosest.network)} on {loosest.data['name']}"
        name = family
        if loosest.device and loosest.budget["metric"] in DEVICE_METRICS:
            name = f"{family}, {loosest.device.get('name', 'table')}"
        sources.append(Source(family, name, partial(recipe.problem_of, loosest), fractions))
    return sources


def _said(network: Mapping[str, Any]) -> str:
    """What tells networks of one name apart."""
    options = network.get("options") or {}
    return "".join(f" {name} {value}" for name, value in options.items() if value is not None)


# -- what is left --------------------------------------------------------------------------


def _origin(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a policy was made, for whoever opens its description."""
    kept = {name: value for name, value in options.items() if name != "runs"}
    return {"amc": __version__, "options": kept}


def _csv(rows: Sequence[TaskRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(TaskRow))
    writer.writerows([getattr(row, field.name) for field in fields(TaskRow)] for row in rows)
    return text.getvalue()


def _show(trained: Trained, folder: Path) -> None:
    console = recipe.console_for_tables()
    if trained.rows:
        table = Table("task", "strategies", "program", "policy", "best seen", title="reward")
        for row in trained.rows:
            numbers = significant([row.knapsack, row.policy, row.best])
            table.add_row(row.task, str(row.evaluated), *numbers)
        console.print(table)
    if trained.interrupted:
        console.print("ended early by Ctrl-C: the policy is of what was evaluated until then")
        console.print(f"the rest: {resume_command(folder)}", highlight=False, soft_wrap=True)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
