"""``amc compare``: searchers beside each other, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from agents.searcher import SEARCHERS
from amc.cli import recipe
from amc.cli.resume import read_run
from amc.cli.workers import bench_of, in_parallel
from amc.comparison.cells import cells_of
from amc.comparison.comparison import Comparison, compare
from amc.errors import AmcError
from amc.objectives import build_objective
from amc.report.ranking import ranking_table
from amc.study.artifact import RunRecord
from amc.utils.runs import resume_command
from envs.reward import build_reward


def run(config: DictConfig) -> recipe.Ended:
    """Set up, compare, write, show."""
    if config.resume is None:
        folder = recipe.run_folder()
        record = recipe.record_of("compare", config, _settings(config))
        _check(record)
        record.write(folder)
    else:
        folder = Path(config.resume).expanduser()
        overrides = (text.partition("=") for text in HydraConfig.get().overrides.task)
        given = {name: value for name, _, value in overrides}
        record = read_run(folder, _settings(config), given)
        _check(record)
    settings = record.settings
    comparison = compare(
        recipe.problem_of(record),
        **bench_of(record),
        agents=settings["agents"],
        seeds=settings["seeds"],
        observation=settings["env"]["observation"],
        threads=settings["threads"],
        folder=folder,
        run=in_parallel(record, config.jobs) if config.jobs > 1 else None,
    )
    _show(comparison, folder)
    return recipe.Ended(comparison.interrupted)


def _settings(config: DictConfig) -> dict[str, Any]:
    groups = {name: recipe.plain(config[name]) for name in ("env", "recovery", "search")}
    lists = {
        "agents": list(SEARCHERS) if config.agents is None else recipe.plain_list(config.agents),
        "seeds": recipe.plain_list(config.seeds),
        "decisions": recipe.plain_list(config.decisions),
    }
    plain = {"objective": recipe.objective_of(config)}
    plain |= {name: config[name] for name in ("threads", "reward")}
    return {**lists, **plain, **groups}


def _check(record: RunRecord) -> None:
    """Find mistakes before a base network is trained or a device measured."""
    settings = record.settings
    evaluations, observation = settings["search"]["evaluations"], settings["env"]["observation"]
    space = recipe.options_of(record)[-1]
    agents, seeds = settings["agents"], settings["seeds"]
    cells_of(agents, seeds, evaluations, observation, space.other_parts)
    build_reward(settings["reward"])
    recipe.recovery_of(settings["recovery"])
    build_objective(**recipe.objective_in(settings))


def _show(comparison: Comparison, folder: Path) -> None:
    """Print the table, the notes, and where everything is.

    Raises:
        AmcError: Searches failed.
    """
    console = recipe.console_for_tables()
    console.print(comparison.title, highlight=False)
    console.print(ranking_table(comparison.ranking, comparison.primary))
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    done, failed = len(comparison.results), len(comparison.failures)
    left = len(comparison.cells) - done - failed
    console.print(f"written to {folder.resolve()}", highlight=False, soft_wrap=True)
    if left:
        console.print(
            f"ended early by Ctrl-C with {left} of {len(comparison.cells)} searches left; "
            f"the rest: {resume_command(folder)}",
            highlight=False,
            soft_wrap=True,
        )
    if failed:
        labels = dict.fromkeys(failure.cell.entry.label for failure in comparison.failures)
        raise AmcError(
            f"{failed} of {len(comparison.cells)} searches failed: {', '.join(labels)}. Why is "
            f"said above. Tried again by: {resume_command(folder)}"
        )
