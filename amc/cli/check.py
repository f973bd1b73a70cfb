"""Types of options, checked before anything starts; ranges are left to what takes the option."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.settings import check_names
from amc.cli.explain import choices_of
from amc.cli.optimize import NAMES, direction_of
from amc.cost.budget import Budget
from amc.data.options import read_options
from amc.errors import ConfigError
from amc.utils.checkpoints import check_checkpoint
from amc.utils.documents import NUMBER, SWITCH, TEXT, Kind, is_number, or_null
from amc.utils.extras import check_installed
from amc.utils.runs import FINETUNE_FOLDER, RUN_FILE, check_network, check_run_folder
from amc.utils.urls import has_password

SHIPPED = "shipped"  # the policy that comes with amc, and is in no run's folder
_OR_SHIPPED = f" Or policy={SHIPPED}, which comes with amc."
MISSING = "???"  # an option without default that was not given; whoever reads it says so


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list_of(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(accepts, value))


def _is_objective(value: Any) -> bool:
    return isinstance(value, str) and direction_of(value) is not None


_AT_LEAST_0: Kind = (lambda value: _is_whole(value) and value >= 0, "a whole number from 0")
_AT_LEAST_1: Kind = (lambda value: _is_whole(value) and value >= 1, "a whole number from 1")
_SEED: Kind = (
    lambda value: _is_whole(value) and 0 <= value < 2**63,  # as large as generators take
    "a whole number from 0 to 9223372036854775807",
)
_MAPPING: Kind = (lambda value: isinstance(value, Mapping), "names with values, {name: value}")
_WIDTHS: Kind = (lambda value: _is_list_of(value, _is_whole), "a list such as [8,32]")
_FRACTIONS: Kind = (
    lambda value: _is_list_of(value, is_number),
    "a list of numbers, [1,0.5,0]",
)
_LIST: Kind = (lambda value: isinstance(value, list), "a list, [one,another]")
_NAMES: Kind = (
    lambda value: _is_text(value) or _is_list_of(value, _is_text),
    "text, or a list of texts",
)
_FILES: Kind = (
    lambda value: _is_text(value) or _is_list_of(value, lambda one: one is None or _is_text(one)),
    "text, or a list of texts and nulls",
)
_FEATURES: Kind = (
    lambda value: _is_text(value) or _is_list_of(value, _is_text),
    "plain, all, a list of names, [name,name]",
)

_STORE: Kind = (
    lambda value: isinstance(value, bool) or _is_text(value),
    "true, false, a file, or the URL of a database",
)
_OBJECTIVES: Kind = (
    lambda value: (
        _is_objective(value)
        or (_is_list_of(value, _is_objective) and len(set(value)) == len(value))
    ),
    f"one of {', '.join(NAMES)}, or a list of some",
)

OPTIONS: dict[str, Kind] = {
    "seed": _SEED,
    "seeds": _LIST,
    "agents": or_null(_LIST),
    "threads": _AT_LEAST_1,
    "batch": _AT_LEAST_1,
    "opset": _AT_LEAST_1,
    "format": TEXT,
    "coder": TEXT,
    "integer_additions": SWITCH,
    "jobs": _AT_LEAST_1,
    "reward": TEXT,
    "objective.name": or_null(TEXT),
    "objective.weights": or_null(_MAPPING),
    "objective.metric": or_null(TEXT),
    "decisions": or_null(_LIST),
    "optimize": _OBJECTIVES,
    "policy": TEXT,
    "strengths": or_null(_FRACTIONS),
    "refine": _AT_LEAST_0,
    "run": TEXT,
    "runs": _LIST,
    "cost": TEXT,
    "output": or_null(TEXT),
    "todo": or_null(TEXT),
    "todo_covers": TEXT,
    "programs": or_null(TEXT),
    "import": or_null(TEXT),
    "remote": or_null(TEXT),
    "remote_rows": _AT_LEAST_1,
    "remote_timeout_s": NUMBER,
    "restart": SWITCH,
    "resume": or_null(TEXT),
    "resume_force": SWITCH,
    "checkpoint": or_null(TEXT),
    "data_root": or_null(TEXT),
    "epochs": _AT_LEAST_1,
    "augment": or_null(_LIST),
    "batch_size": _AT_LEAST_1,
    "learning_rate": or_null(NUMBER),
    "weight_decay": NUMBER,
    "warmup_fraction": NUMBER,
    "distillation_weight": NUMBER,
    "temperature": NUMBER,
    "distill.kd": NUMBER,
    "distill.at": NUMBER,
    "distill.sp": NUMBER,
    "teacher": or_null(_NAMES),
    "teacher_checkpoint": or_null(_FILES),
    "learned_steps": SWITCH,
    "gradual": NUMBER,
    "straight_through": NUMBER,
    "average": NUMBER,
    "batch_norm_images": _AT_LEAST_0,
    "tasks": _LIST,
    "start": TEXT,
    "episodes": _AT_LEAST_0,
    "rounds": _AT_LEAST_1,
    "noise": NUMBER,
    "recall": SWITCH,
    "workers": _AT_LEAST_0,
    "workers_on": TEXT,
    "store": _STORE,
    "fit.actors": _AT_LEAST_1,
    "fit.hidden": _AT_LEAST_1,
    "fit.steps": _AT_LEAST_1,
    "fit.learning_rate": NUMBER,
    "fit.restraint": NUMBER,
    "search.evaluations": _AT_LEAST_1,
    "search.images": _AT_LEAST_1,
    "search.bfloat16": or_null(SWITCH),
    "search.final_candidates": _AT_LEAST_1,
    "search.store": _STORE,
    "search.checkpoint_every": _AT_LEAST_1,
    "search.reaim": _AT_LEAST_0,
    "search.workers": _AT_LEAST_0,
    "search.proposals": or_null(_AT_LEAST_1),
    "search.workers_on": TEXT,
    "network.name": TEXT,
    "network.checkpoint": or_null(TEXT),
    "network.pretrained": SWITCH,
    "network.options": or_null(_MAPPING),
    "network.outputs": or_null(_LIST),
    "data.name": TEXT,
    "data.root": or_null(TEXT),
    "data.seed": _SEED,
    "agent.name": TEXT,
    "env.min_preserve_ratio": NUMBER,
    "env.channel_step": or_null(_AT_LEAST_1),
    "env.drop_blocks": SWITCH,
    "env.weight_bits": or_null(_WIDTHS),
    "env.activation_bits": or_null(_WIDTHS),
    "env.observation": or_null(_FEATURES),
    "recovery.images": _AT_LEAST_1,
    "recovery.repair_images": _AT_LEAST_1,
    "recovery.quick_images": _AT_LEAST_0,
    "recovery.batch_norm_images": _AT_LEAST_1,
    "recovery.error_images": _AT_LEAST_1,
    "recovery.least_squares": SWITCH,
    "recovery.batch_norm": SWITCH,
    "recovery.importance": TEXT,
    "recovery.sequential": SWITCH,
    "recovery.stream_correction": SWITCH,
    "recovery.rectified": SWITCH,
    "recovery.max_columns": _AT_LEAST_1,
    "recovery.polish": _AT_LEAST_0,
}

# Groups whose options are all listed above. What else is given (by +group.option=value) would
# otherwise be passed over in silence. The others are checked by what takes their options.
_CLOSED = ("network", "objective", "env", "recovery", "search", "fit")
_OPEN = ("device", "budget")
_BOUNDS = ("budget.fraction=", "budget.absolute=", "budget.keep=")


def check_options(config: Mapping[str, Any]) -> None:
    """Check every option of ``OPTIONS`` that is there.

    Args:
        config: Options by name; those of a group in a mapping of their own.

    Raises:
        ConfigError: An option has a value of another type, or a group has an unknown option.
        DataError: So has an option of the data.
    """
    for key, (accepts, expected) in OPTIONS.items():
        group, _, name = key.rpartition(".")
        part = config.get(group, {}) if group else config
        if not isinstance(part, Mapping):
            raise ConfigError(f"{group} must be a group of options, got {part!r}.")
        if name in part and part[name] != MISSING and not accepts(part[name]):
            raise ConfigError(f"{key} must be {expected}, got {part[name]!r}.")
        if accepts is _STORE[0] and _is_text(part.get(name)) and has_password(part[name]):
            raise ConfigError(
                f"{key} has a password in it, and runs record their options: leave it out. Of "
                "PostgreSQL it is taken from PGPASSWORD, or from ~/.pgpass."
            )
    known = sorted({*OPTIONS, *_OPEN, *(key.partition(".")[0] for key in OPTIONS)})
    given = [f"{group}.{name}" for group in _CLOSED for name in config.get(group, {})]
    for key in [*config, *given]:
        if key not in known:
            beside = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            near = _nearest(key, beside) or _nearest(key, known)
            hint = f"Did you mean {near}?" if near else f"Known: {', '.join(beside)}."
            raise ConfigError(f"Unknown option {key}. {hint}")
    data = config.get("data") or {}
    read_options({name: data[name] for name in data if f"data.{name}" not in OPTIONS})


def check_folders(config: Mapping[str, Any]) -> None:
    """Check the runs which options name: at once, not after seconds of imports.

    Raises:
        ArtifactError: A folder is missing, or holds no network where one is asked for.
    """
    for key in ("run", "policy"):
        given = config.get(key, MISSING)
        if given == MISSING or (key == "policy" and given == SHIPPED):
            continue
        folder = Path(given).expanduser()
        check_run_folder(folder, _OR_SHIPPED if key == "policy" else "")
        if key == "run" and ((folder / RUN_FILE).is_file() or folder.name == FINETUNE_FOLDER):
            check_network(folder)


def check_early(config: Mapping[str, Any]) -> None:
    """Check at once what would be found wrong after seconds of imports.

    Raises:
        NetworkError: The checkpoint is not there.
        BudgetError: The budget cannot be.
        DeviceError: The device needs a package that is not installed.
    """
    network, budget = config.get("network"), config.get("budget")
    if isinstance(device := config.get("device"), Mapping):
        check_installed(device.get("kind"))
    if isinstance(network, Mapping) and not network.get("pretrained"):
        checkpoint = network.get("checkpoint")
        if checkpoint and checkpoint != MISSING:
            check_checkpoint(Path(checkpoint).expanduser())
    agents = config.get("agents")
    if isinstance(agents, Sequence) and not isinstance(agents, str):
        names = [name for name in agents if isinstance(name, str) and ":" not in name]
        check_names("agent", names, choices_of("agent"))
    if isinstance(budget, Mapping) and isinstance(budget.get("metric"), str):
        bounds = [budget.get(name) for name in ("fraction", "absolute", "keep")]
        if bounds != [None] * 3 and not _is_left_to_a_run(budget):
            Budget.of_options(budget)


def _is_left_to_a_run(budget: Mapping[str, Any]) -> bool:
    return MISSING in budget.values()


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that no two options of the command line contradict each other.

    Raises:
        ConfigError: Two bounds are given.
    """
    bounds = [text for text in overrides if text.startswith(_BOUNDS) and not text.endswith("=null")]
    if len({text.partition("=")[0] for text in bounds}) > 1:
        raise ConfigError(f"Give one bound of the budget, got {' and '.join(bounds)}.")


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The option whose name, its group aside, is the most like this one's."""
    names = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
    return names[near[0]] if near else None
