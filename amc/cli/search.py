"""``amc search``: find a smaller network within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from amc import api, journal
from amc.artifact import RunRecord
from amc.cli import recipe
from amc.cli.optimize import objectives_of, value_of
from amc.cli.resume import read_run
from amc.objectives import build_objective
from amc.runs import resume_command


def run(config: DictConfig) -> recipe.Ended:
    """Set up, search, write, show."""
    objectives = objectives_of(config.optimize)
    if config.resume is None:
        folder = recipe.run_folder()
        record = recipe.record_of("search", config, _settings(config))
        record.write(folder)
        return _search(record, folder, objectives)
    folder = Path(config.resume).expanduser()
    overrides = (text.partition("=") for text in HydraConfig.get().overrides.task)
    given = {name: value for name, _, value in overrides}
    record = read_run(folder, _settings(config), given)
    if journal.is_finished(folder):
        print(f"{folder} is finished: nothing to resume, its results are there")
        return recipe.Ended()
    return _search(record, folder, objectives, resume=True, resume_force=config.resume_force)


def _settings(config: DictConfig) -> dict[str, Any]:
    groups = ("agent", "env", "recovery", "search")
    found = {name: recipe.plain(config[name]) for name in groups}
    names = ("seed", "objective", "reward")
    decisions = recipe.plain_list(config.decisions)
    return {**{name: config[name] for name in names}, "decisions": decisions, **found}


def _search(
    record: RunRecord, folder: Path, objectives: Sequence[str], **resuming: bool
) -> recipe.Ended:
    """Search as the record says."""
    settings, options = record.settings, record.settings["search"]
    device, budget = dict(record.device) or None, recipe.budget_of(record.budget)
    space = recipe.space_of(settings["env"], settings["decisions"])
    recovery = recipe.recovery_of(settings["recovery"])
    observation = settings["env"]["observation"]
    api.check_search(
        settings["agent"], settings["reward"], device, budget, options["reaim"], observation, space
    )
    recipe.check_prices(objectives, device)
    objective = build_objective(settings["objective"])
    network, data = recipe.prepared(record.network, record.data)
    result = api.search(
        network,
        data,
        device,
        budget,
        objective=objective,
        agent=settings["agent"],
        evaluations=options["evaluations"],
        reward=settings["reward"],
        seed=settings["seed"],
        space=space,
        recovery=recovery,
        search_images=options["images"],
        bfloat16=options["bfloat16"],
        final_candidates=options["final_candidates"],
        observation=observation,
        folder=folder,
        store=options["store"],
        checkpoint_every=options["checkpoint_every"],
        reaim=options["reaim"],
        hparams={"target": f"{record.network['name']} on {(device or {}).get('name', 'table')}"},
        **resuming,
    )
    recipe.show(result, folder)
    if result.interrupted:
        print(f"the rest: {resume_command(folder)}")
    return recipe.Ended(result.interrupted, value_of(result, objectives))
