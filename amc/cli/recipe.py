"""What the commands share: configuration to plain arguments, and what they print."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from amc.cost.budget import DEVICE_METRICS, Budget
from amc.cost.device import Device
from amc.cost.profile import LocalSpec
from amc.cost.shipped import DeviceLike, as_device
from amc.data import DataSet, build_data
from amc.decisions import TAKEN, build_decision
from amc.errors import ConfigError, NetworkError
from amc.networks import SelectOutputs, build_network, load_checkpoint, outputs_in
from amc.networks.build import check_network_name, images_of
from amc.objectives import DEFAULT, build_objective
from amc.problem.problem import Problem, check_problem
from amc.problem.space import SearchSpace
from amc.recovery.settings import RecoverySettings
from amc.report.tables import comparison_table
from amc.study.artifact import RunRecord
from amc.study.finetuning import train_base
from amc.study.result import SearchResult
from amc.utils.checkpoints import check_checkpoint
from amc.utils.runs import as_option, code_of, functions_again

log = logging.getLogger("amc")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        interrupted: Whether Ctrl-C was pressed, and it ended with what it had.
        objective: What a sweeper that optimises gets (`amc.cli.optimize`); None: nothing.
    """

    interrupted: bool = False
    objective: float | list[float] | None = None


TRAINED_BY_AMC = ("digits",)  # small enough to train a base network in seconds
WITHOUT_SIZE = ("image_folder",)  # whose images have any size, and any network's normalisation


def plain(config: Any) -> dict[str, Any]:
    """A part of the configuration as a plain dict.

    Raises:
        omegaconf.errors.MissingMandatoryValue: An option without default was not given.
    """
    found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def run_folder() -> Path:
    """The output folder that Hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)


def prepared(
    network: Mapping[str, Any], data: Mapping[str, Any], *, trained: bool = True
) -> tuple[nn.Module, DataSet]:
    """The network and the data of two config groups: the data are read once all is checked.

    Args:
        trained: Whether the network needs its weights.

    Raises:
        ConfigError, NetworkError: As `network_of`.
        DataError: The data cannot be read.
    """
    check_network(network, data, trained=trained)
    found = data_of(data_for(network, data))
    return network_of(network, found, trained=trained), found


def problem_of(record: RunRecord) -> Problem:
    """The problem of a search or a comparison, as its folder keeps it.

    Raises:
        AmcError: Whatever does not fit: the options first, before data are read.
    """
    settings, options = record.settings, record.settings["search"]
    device, budget, space = options_of(record)
    objective = build_objective(**objective_in(settings))
    recovery = recovery_of(settings["recovery"])
    network, data = prepared(record.network, record.data)
    return Problem(
        network,
        data,
        device,
        budget,
        objective=objective,
        space=space,
        recovery=recovery,
        search_images=options["images"],
        bfloat16=options["bfloat16"],
    )


def options_of(record: RunRecord) -> tuple[Device | LocalSpec | None, Budget, SearchSpace]:
    """Device, budget and search space of a record, checked together."""
    env, decisions = record.settings["env"], record.settings["decisions"]
    space, budget = space_of(env, decisions), Budget.of_options(record.budget)
    return *check_problem(dict(record.device) or None, budget, space), space


def data_of(options: Mapping[str, Any]) -> DataSet:
    """The data set of a config group."""
    return build_data(**options)


def data_for(network: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of data, with what the network's weights were trained on where they say nothing.

    Of networks that come with numbers of their own: for folders, whose images have no size; and for
    all data where the published weights are asked for.

    Raises:
        NetworkError: There is no such network.
    """
    pretrained = bool(network.get("pretrained"))
    if not pretrained and data.get("name") not in WITHOUT_SIZE:
        return dict(data)
    known = images_of(str(network["name"]), pretrained=pretrained)
    if data.get("channels") == 1:  # of grey images one number, as weights for colours are summed
        known |= {key: [fmean(known[key])] for key in ("mean", "std") if key in known}
    told = {key: value for key, value in known.items() if data.get(key) is None}
    if told:
        said = ", ".join(f"data.{key}={value}" for key, value in told.items())
        log.info("of %s, as nothing else is said: %s", network["name"], said)
    return {**data, **told}


def device_of(config: DictConfig) -> dict[str, Any] | None:
    """The device config group, its files by absolute paths; None after ``~device``."""
    if config.get("device") is None:
        return None
    return absolute_paths(plain(config.device), ["path"])


def check_network(
    options: Mapping[str, Any], data: Mapping[str, Any], *, trained: bool = True
) -> None:
    """Check a network's options before anything is read.

    Raises:
        ConfigError: It is given what the data decide.
        NetworkError: There is no such network or checkpoint; or there is no checkpoint, and the
            network cannot be trained in seconds.
    """
    name, given = str(options["name"]), options.get("options") or {}
    own = sorted({"name", "image_shape"} & set(given))
    if own:
        raise ConfigError(f"network.options must not hold {', '.join(own)}: the data decide them.")
    pretrained = bool(options.get("pretrained")) and trained
    check_network_name(name, pretrained=pretrained)
    if not trained:
        return
    if pretrained and options.get("checkpoint"):
        raise ConfigError("Give network.pretrained=true or network.checkpoint=<file>, not both.")
    if pretrained:
        return
    if options.get("checkpoint"):
        check_checkpoint(Path(options["checkpoint"]).expanduser())
    elif ":" not in name and data.get("name") not in TRAINED_BY_AMC:
        raise NetworkError(
            f"Network {name!r} has no weights for data {data.get('name')!r}. Give a trained "
            "checkpoint: network.checkpoint=<file.safetensors or .pt>, the published weights of "
            "torchvision or timm: network.pretrained=true, or a function of your own that loads "
            "them: network=package.module:function."
        )


def network_of(options: Mapping[str, Any], data: DataSet, *, trained: bool = True) -> nn.Module:
    """The network of a config group, with its weights; of its outputs those that are chosen.

    Raises:
        NetworkError: As `amc.networks.SelectOutputs`.
    """
    network = _whole_network_of(options, data, trained=trained)
    chosen = options.get("outputs")
    return network if chosen is None else SelectOutputs(network, chosen)


def _whole_network_of(options: Mapping[str, Any], data: DataSet, *, trained: bool) -> nn.Module:
    """The network of a config group that is checked (`check_network`), with its weights.

    It has an output for each class of the data, or as many as ``network.options.num_classes``, its
    checkpoint or its published weights say: then the data's labels do not count
    (`amc.problem.problem.matched`).
    """
    name, given = str(options["name"]), dict(options.get("options") or {})
    asked = given.pop("num_classes", None)

    def build(outputs: int | None) -> nn.Module:
        return build_network(name, num_classes=outputs, image_shape=data.image_shape, **given)

    if trained and options.get("pretrained"):
        return build_network(
            name, num_classes=asked, image_shape=data.image_shape, pretrained=True, **given
        )
    checkpoint = options.get("checkpoint") if trained else None
    if checkpoint:
        path = Path(checkpoint).expanduser()
        network = build(asked or data.num_classes or 1)
        outputs = outputs_in(path, network, asked or data.num_classes or 1)
        if asked is None and outputs is not None:
            log.info("the checkpoint %s is of a network with %d outputs", path, outputs)
            network = build(outputs)
        load_checkpoint(network, path)
        return network
    network = build(asked or data.num_classes or None)
    if not trained or ":" in name:
        return network  # the user's function brings the weights
    return train_base(network, data, name)


def recorded_data(recorded: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """The run's data options, from another place if the user says so.

    A function that a file names is called only if the user names it too.
    """
    given = plain(config.data) if config.get("data") else {}
    confirmed("data", recorded.get("name"), given.get("name"))
    other = [
        name
        for name, value in given.items()
        if name not in ("name", "seed") and value not in (None, recorded.get(name))
    ]
    if other:
        raise ConfigError(
            f"The run's data have their options already: leave out data.{other[0]}. (They may lie "
            "elsewhere: data_root=<folder>.)"
        )
    if not config.data_root:
        return dict(recorded)
    return {**recorded, "root": str(Path(config.data_root).expanduser())}


def recorded_network(recorded: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """The run's network. A function that a file names is called only if the user names it too."""
    options = dict(recorded)
    if config.checkpoint:
        options["checkpoint"] = str(Path(config.checkpoint).expanduser())
    confirmed(
        "network", options.get("name"), config.network.name if config.get("network") else None
    )
    return options


def objective_of(config: DictConfig) -> Any:
    """The objective config group, as a run's settings keep it: its name, where that is all."""
    options = plain(config.objective)
    is_named_alone = options["weights"] is None and options["metric"] is None
    return options["name"] if is_named_alone else options


def objective_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The objective in a run's settings as `build_objective` takes it.

    That of runs that do not say is the default, classification.
    """
    found = settings.get("objective", DEFAULT.name)
    options = dict(found) if isinstance(found, Mapping) else {"name": found}
    return {"objective": options.pop("name"), **options}


def recorded_objective(settings: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """The run's objective (`objective_in`), whose code the user names again."""
    found, given = objective_in(settings), plain(config.objective)
    confirmed("objective", found["objective"], given["name"])
    confirmed("objective.metric", found.get("metric"), given["metric"])
    if given["weights"] not in (None, found.get("weights")):
        said = f"{found.get('weights')}, not {given['weights']}"
        raise ConfigError(f"The run is of objective.weights {said}.")
    return found


def recorded_decisions(settings: Mapping[str, Any], config: DictConfig) -> list[str] | None:
    """The run's decisions beside channels and bits, which its strategies may hold from now on."""
    recorded, given = settings.get("decisions"), plain_list(config.decisions)
    confirmed("decisions", as_option(recorded), None if given is None else as_option(given))
    for decision in recorded or ():
        if decision not in TAKEN:
            build_decision(decision)
    return recorded


def plain_list(config: Any) -> list[Any] | None:
    """A list of the configuration, if there is one.

    Raises:
        omegaconf.errors.MissingMandatoryValue: As `plain`.
    """
    if config is None:
        return None
    found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(found, list)
    return found


def confirmed(option: str, recorded: object, given: object, again: str = "") -> None:
    """A function or a class that a file names is called only if the user names it too.

    Args:
        recorded: What the run has there.
        given: What the user does; None: nothing.
        again: All that is to be named again, if not this alone.

    Raises:
        ConfigError: It is another, or one that only the file names.
    """
    if given not in (None, recorded):
        raise ConfigError(f"The run is of {option} {recorded!r}, not {given!r}.")
    if given is None and ":" in str(recorded):
        raise ConfigError(
            f"The run says that its {option} is the code {recorded!r}. amc calls no code "
            f"that only a file names: if it is yours, add{again or f' {option}={recorded}'}."
        )


def code_again(record: RunRecord, *, network: bool = True) -> str:
    """What a later command on a run needs beside it: the code of the user's that it names.

    Args:
        network: Whether its network is among that: not where it is about another one.
    """
    names = ("network", "data", "objective", "objective.metric", "decisions")
    again = names if network else names[1:]
    code = code_of({"network": record.network, "data": record.data, "settings": record.settings})
    return functions_again({name: code[name] for name in again})


def space_of(options: Mapping[str, Any], decisions: Sequence[str] | None = None) -> SearchSpace:
    """What may be chosen, from the env config group and the option decisions."""
    widths = {
        name: None if options[name] is None else tuple(options[name])
        for name in ("weight_bits", "activation_bits")
    }
    return SearchSpace(
        options["min_preserve_ratio"],
        options["channel_step"],
        drop_blocks=options.get("drop_blocks", False),  # runs made before there was a choice
        decisions=tuple(decisions or ()),
        **widths,
    )


def check_prices(objectives: Sequence[str], device: DeviceLike) -> None:
    """Check that the device prices the objectives that are a device's metrics.

    Raises:
        ConfigError: It does not, or there is none.
    """
    loaded = as_device(device)
    priced = () if loaded is None else loaded.metrics
    for name in objectives:
        if name in DEVICE_METRICS and name not in priced:
            named = "there is no device" if loaded is None else f"device {loaded.name} does not"
            raise ConfigError(f"optimize={name} needs a device that prices it, and {named}.")


def recovery_of(options: Mapping[str, Any]) -> RecoverySettings:
    """The recovery config group."""
    return RecoverySettings(**options)


class _Terminal(Console):
    """One whose reader may go away: that ends a command quietly, as it does without tables."""

    def on_broken_pipe(self) -> None:
        raise


def console_for_tables() -> Console:
    """The terminal; where there is none, lines long enough for a table."""
    console = _Terminal()
    return console if console.is_terminal else _Terminal(width=120)


def show(result: SearchResult, folder: Path) -> None:
    """Print the table, the notes, and where everything is."""
    console = console_for_tables()
    console.print(comparison_table(result.comparison, result.task.objective.scores))
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if result.interrupted and len(result.trials) < result.evaluations:
        tried = f"{len(result.trials)} of {result.evaluations} evaluations"
        unlearned = "" if result.policy else "; the agent had learned nothing yet: no policy"
        console.print(f"ended early by Ctrl-C after {tried}{unlearned}", highlight=False)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)


def absolute_paths(options: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The options with paths made absolute, so that a later command finds them from anywhere."""
    fixed = dict(options)
    for key in keys:
        if fixed.get(key):
            fixed[key] = str(Path(str(fixed[key])).expanduser().resolve())
    return fixed


def record_of(kind: str, config: DictConfig, settings: dict[str, Any]) -> RunRecord:
    """How a command's run is made, as its folder keeps it."""
    network = recorded_place(config.network, "checkpoint")
    return RunRecord(
        kind=kind,
        network=network,
        data=data_for(network, recorded_place(config.data, "root")),
        device=device_of(config) or {},
        budget=plain(config.budget),
        settings=settings,
    )


def recorded_place(options: DictConfig, key: str) -> dict[str, Any]:
    """A config group with the path that it has under a key made absolute."""
    return absolute_paths(plain(options), [key])
