"""``amc apply``: compress a network by a learned policy, without a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from agents.policies import AnyPolicy, load_policy
from agents.policy import Policy
from agents.trust import NO_PRIOR, SHIPPED, TrustPolicy, folder_of
from agents.weights import DESCRIPTION_FILE
from amc.cli import recipe
from amc.cli.check import check_options
from amc.cli.optimize import objectives_of, value_of
from amc.cli.search import print_next, settings_of
from amc.cost.budget import METRICS, Budget
from amc.errors import ArtifactError, ConfigError, PolicyError
from amc.objectives import DEFAULT
from amc.study import artifact
from amc.study.apply import apply
from amc.utils.runs import RUN_FILE, has_network, how_to_go_on

_SPACE = {"min_preserve_ratio", "channel_step", "weight_bits", "activation_bits"}


def run(config: DictConfig) -> recipe.Ended:
    """Read the policy, walk, write, show."""
    objectives = objectives_of(config.optimize)
    folder = recipe.run_folder()
    source = folder_of(config.policy)
    if config.policy != SHIPPED:
        artifact.RunRecord.read(source)
    policy = _policy(source)
    learned = _learned_by(policy, source, config)
    strengths = policy.strengths if config.strengths is None else list(config.strengths)
    policy.check_strengths(strengths)
    policy.check_features()
    record = _record(config, source, learned, list(strengths))
    recipe.check_prices(objectives, record.device or None)
    recipe.options_of(record)
    record.write(folder)
    check_options({"data": record.data})
    result = apply(
        policy,
        recipe.problem_of(record),
        strengths,
        folder=folder,
        store=True,
        refine=config.refine,
        prior=str(config.policy) if isinstance(policy, TrustPolicy) else NO_PRIOR,
        seed=config.seed,
    )
    recipe.show(result, folder)
    print_next(record, folder, has_policy=False)
    return recipe.Ended(objective=value_of(result, objectives))


def _learned_by(policy: AnyPolicy, source: Path, config: DictConfig) -> artifact.RunRecord:
    """The run whose options hold where none are given.

    A policy that corrects estimates was learned over many tasks: what a search would take.
    """
    if isinstance(policy, Policy):
        return artifact.RunRecord.read(source)
    metric = config.budget.metric
    default = hydra.compose("search", [f"budget={metric}"] if metric in METRICS else [])
    return recipe.record_of("search", default, settings_of(default))


def _record(
    config: DictConfig, source: Path, learned: artifact.RunRecord, strengths: list[float]
) -> artifact.RunRecord:
    """How the run is made: what is not given is as in the run that learned the policy."""
    device = recipe.device_of(config) or _learned(learned.device)
    budget = _budget(recipe.plain(config.budget), learned.budget)
    env = recipe.plain(config.env) if config.get("env") else {}
    if not set(env) >= _SPACE:
        env = {**_choices(source, learned), **env}
    check_options({"env": env})
    decisions = recipe.plain_list(config.decisions)
    if decisions is None:
        decisions = recipe.recorded_decisions(learned.settings, config)
    if config.get("data"):
        data = recipe.recorded_place(config.data, "root")
    else:
        data = recipe.recorded_data(learned.data, config)
    return artifact.RunRecord(
        kind="apply",
        network=recipe.recorded_place(config.network, "checkpoint"),
        data=data,
        device=device or {},
        budget={"metric": budget.metric, "fraction": budget.fraction, "absolute": budget.absolute},
        settings={
            "policy": SHIPPED if config.policy == SHIPPED else str(source.resolve()),
            "refine": config.refine,
            "seed": config.seed,
            "objective": _objective(config, learned),
            "decisions": decisions,
            "strengths": strengths,
            "env": env,
            "recovery": recipe.plain(config.recovery),
            "search": recipe.plain(config.search),
        },
    )


def _learned(device: Mapping[str, Any]) -> dict[str, Any] | None:
    """The device of the run that learned the policy, if it is no class that only a file names."""
    if ":" in str(device.get("name")):
        raise ConfigError(
            f"The run says that its device is the class {device['name']!r}. amc calls no code "
            "that only a file names: if it is yours, add device=custom "
            f"device.name={device['name']}."
        )
    return dict(device) or None


def _objective(config: DictConfig, learned: artifact.RunRecord) -> Any:
    if config.objective.name is not None:
        return recipe.objective_of(config)
    recipe.recorded_objective(learned.settings, config)
    return learned.settings.get("objective", DEFAULT.name)


def _choices(source: Path, learned: artifact.RunRecord) -> dict[str, Any]:
    """What the run that learned the policy might choose."""
    env = learned.settings.get("env")
    if not isinstance(env, Mapping) or not set(env) >= _SPACE:
        raise ArtifactError(
            f"{source / RUN_FILE} must hold in settings.env what its search might choose "
            f"({', '.join(sorted(_SPACE))}), got {env!r}. Add env=default, or the env options of "
            "that search."
        )
    return dict(env)


def _policy(source: Path) -> AnyPolicy:
    if not (source / DESCRIPTION_FILE).is_file():
        raise PolicyError(
            f"{source} holds no policy ({DESCRIPTION_FILE}): its agent learns none (uniform, "
            "random), or the search ended before the agent learned. Give the run of a search with "
            "agent=ddpg, td3 or sac and more evaluations."
            f"{'' if has_network(source) else how_to_go_on(source)}"
        )
    return load_policy(source)


def _budget(given: Mapping[str, Any], learned: Mapping[str, Any]) -> Budget:
    """What was given; the rest from the run that learned the policy.

    Raises:
        ConfigError: Another metric is given than the run's, without a bound: that run's would mean
            something else in it.
    """
    metric = given["metric"] or learned.get("metric")
    bound = given
    if given["fraction"] is None and given["absolute"] is None:
        if given["metric"] in METRICS and metric != learned.get("metric"):
            raise ConfigError(
                f"budget.metric={metric} needs a bound: the policy was learned with one on "
                f"{learned.get('metric')}, which is not one on {metric}. Add budget.fraction=... "
                "(of the original's) or budget.absolute=..."
            )
        bound = learned
    return Budget.of_options({**bound, "metric": metric})
