"""``amc search``: find a smaller network within a budget."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from amc.cli import recipe
from amc.cli.optimize import objectives_of, value_of
from amc.cli.resume import read_run
from amc.cost.stored import PACKED
from amc.study import journal
from amc.study.artifact import RunRecord
from amc.study.search import SearchSettings, search
from amc.utils.runs import resume_command


def run(config: DictConfig) -> recipe.Ended:
    """Set up, search, write, show."""
    objectives = objectives_of(config.optimize)
    if config.resume is None:
        folder = recipe.run_folder()
        record = recipe.record_of("search", config, settings_of(config))
        record.write(folder)
        return _search(record, folder, objectives)
    folder = Path(config.resume).expanduser()
    overrides = (text.partition("=") for text in HydraConfig.get().overrides.task)
    given = {name: value for name, _, value in overrides}
    record = read_run(folder, settings_of(config), given)
    if journal.is_finished(folder):
        print(f"{folder} is finished: nothing to resume, its results are there")
        return recipe.Ended()
    return _search(record, folder, objectives, resume=True, resume_force=config.resume_force)


def settings_of(config: DictConfig) -> dict[str, Any]:
    """The settings of a search, as its record keeps them."""
    groups = ("agent", "env", "recovery", "search")
    found = {name: recipe.plain(config[name]) for name in groups}
    names = ("seed", "reward")
    decisions = recipe.plain_list(config.decisions)
    objective = {"objective": recipe.objective_of(config)}
    return {**{n: config[n] for n in names}, **objective, "decisions": decisions, **found}


def _search(
    record: RunRecord, folder: Path, objectives: Sequence[str], **resuming: bool
) -> recipe.Ended:
    """Search as the record says."""
    settings, options, env = record.settings, record.settings["search"], record.settings["env"]
    asked = SearchSettings(
        settings["agent"],
        options["evaluations"],
        settings["reward"],
        settings["seed"],
        env["observation"],
        options["final_candidates"],
        options["reaim"],
        options["checkpoint_every"],
        options["workers"],
        options["proposals"],
        options["workers_on"],
    )
    device, budget, space = recipe.options_of(record)
    asked.check_on(device, budget.metric, space)
    recipe.check_prices(objectives, device)
    target = f"{record.network['name']} on {record.device.get('name', 'table')}"
    result = search(
        recipe.problem_of(record),
        asked,
        folder=folder,
        store=options["store"],
        hparams={"target": target},
        **resuming,
    )
    recipe.show(result, folder)
    if result.interrupted:
        print(f"the rest: {resume_command(folder)}")
    print_next(record, folder, has_policy=result.policy is not None)
    return recipe.Ended(result.interrupted, value_of(result, objectives))


def print_next(record: RunRecord, folder: Path, *, has_policy: bool) -> None:
    """Say what can be done with what was found; after a sweep there are many, and nothing is."""
    if HydraConfig.get().mode == RunMode.RUN:
        print(next_commands(record, folder, has_policy=has_policy))


def next_commands(record: RunRecord, folder: Path, *, has_policy: bool) -> str:
    """What can be done with the network that was found, and with the policy that was learned."""
    here = Path.cwd()
    short = folder.relative_to(here) if folder.is_relative_to(here) else folder
    run, again = shlex.quote(str(short)), recipe.code_again(record)
    is_packed = record.budget.get("metric") == PACKED
    packed = "format=packed " if is_packed else ""
    file = "the packed file, its parts told" if is_packed else "an ONNX file, checked and timed"
    commands = {
        f"amc export {packed}run={run}{again}": file,
        f"amc finetune run={run} epochs=3{again}": "train it to win accuracy back",
    }
    if has_policy:
        others = recipe.code_again(record, network=False)
        what = "another network by what was learned, without a search"
        commands[f"amc apply policy={run} network=<name>{others}"] = what
    width = max(map(len, commands))
    lines = [f"  {command:{width}}   {what}" for command, what in commands.items()]
    return "\n".join(["next:", *lines])
