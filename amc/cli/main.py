"""One entry for all commands: options by Hydra, errors in one line, exit codes that mean it."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files as package_files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console

from amc import __version__
from amc.cli.check import check_folders, check_options, check_overrides
from amc.cli.explain import NO_OPTIONS, choices_of, explanations
from amc.cli.unbegun import has_begun, remove_unbegun
from amc.errors import AmcError, ConfigError
from amc.packages import check_packages
from amc.runs import RUN_FILE

Recipe = Callable[[DictConfig], bool]
"""Runs a command; True if Ctrl-C was pressed and it ended with what it had."""

COMMANDS = {
    "search": "find a smaller network within a budget",
    "compare": "searchers beside each other, over seeds",
    "apply": "compress a network by a learned policy, without a search",
    "finetune": "train the compressed network of a run",
    "export": "write the compressed network of a run as ONNX, check and time it",
    "profile": "measure a device's latency table for a network",
}

RESUMED = ("search", "compare")
CONTINUED = ("finetune", "profile")  # by the same command once more
LEAVING_NOTHING = ("profile",)  # in their folder: what they make goes elsewhere
HELP = {"-h", "--help"}

USAGE = """\
amc {version}: make a trained CNN run faster on a given device, within a budget

  amc <command> [key=value ...] [-m]

{commands}

  amc <command> --help     all options of a command, with their groups
  amc <command> --cfg job  the configuration that would be used
  amc <command> -m seed=0,1 budget.fraction=0.3,0.5     a sweep

The first one to try:  amc search
"""

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130
_run_log = logging.getLogger("amc.run_log")  # only into the run's log file: see conf/hydra
_run_log.propagate = False
_run_log.addHandler(logging.NullHandler())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; leaves with exit code 0, 1 (the machine or amc failed) or 2 (the user).

    Ctrl-C leaves with 0 if a run could end with what it had, and with 130 if it could not, or if
    jobs of a sweep were left out.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        sys.exit(_run(given[0], given[1:]))
    if given and given[0] == "--version":
        print(f"amc {__version__}")
    elif given and given[0] not in ("-h", "--help", "help"):
        sys.exit(_report(ConfigError(f"Unknown command {given[0]!r}.\n\n{_usage()}")))
    else:
        print(_usage())
    sys.exit(0 if given else 2)


def _usage() -> str:
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return USAGE.format(version=__version__, commands="\n".join(lines))


def _run(command: str, arguments: Sequence[str]) -> int:
    codes: list[int] = []

    def job(config: DictConfig) -> None:
        codes.append(_run_job(command, config))
        if codes[-1] == _INTERRUPTED:
            raise KeyboardInterrupt  # ends the sweep

    job.__module__ = __name__
    start = hydra.main(version_base="1.3", config_path="pkg://amc.conf", config_name=command)(job)
    try:
        check_packages()
        _offer_networks(arguments)
        if command in RESUMED and any(a.startswith("resume=") for a in arguments):
            from amc.cli.resume import place_of_resumed  # brings torch; --help can do without

            arguments = [*arguments, *place_of_resumed(arguments, command)]
        with _called_as(command, arguments):
            start()
    except KeyboardInterrupt:
        if not codes:
            print("interrupted by Ctrl-C before anything began", file=sys.stderr)
        return _INTERRUPTED
    except AmcError as error:
        return _report(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return _report(ConfigError(_said_by_hydra(error)))
    except OSError as error:  # Hydra could not make its output folder
        return _report(_storage_error(error))
    except SystemExit as leaving:  # after --help, or an unknown flag
        if not leaving.code and not HELP.isdisjoint(arguments):
            print(explanations(command, arguments))
        elif leaving.code:
            print(
                f"Options are written name=value, as in amc {command} seed=1: no dashes, no "
                f"spaces. All of them: amc {command} --help.",
                file=sys.stderr,
            )
        return 2 if leaving.code else 0
    return max(codes, default=0)


# -- one job -------------------------------------------------------------------------------


def _run_job(command: str, config: DictConfig) -> int:
    """Run one job. An error ends the job, not the sweep: the other jobs' results count.

    A job that was refused or interrupted before it began leaves no folder.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    may_remove = _is_single_and_new(folder)
    interrupted = False
    try:
        code = _outcome(command, config)
    except KeyboardInterrupt:
        code, interrupted = _INTERRUPTED, True
    begun = has_begun(folder, command)
    ended = (_REFUSED, _INTERRUPTED, *((0,) if command in LEAVING_NOTHING else ()))
    if code in ended and may_remove and not begun:
        remove_unbegun(folder, command)
    if interrupted:
        advice = _how_to_go_on(command, config, folder if begun else None)
        print(f"interrupted by Ctrl-C: {advice}", file=sys.stderr)
    return code


def _is_single_and_new(folder: Path) -> bool:
    """Whether the folder is of this call alone: not the user's, of a sweep, or of another run."""
    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN and hydra_config.output_subdir is not None
    return single and folder != Path.cwd() and not (folder / RUN_FILE).exists()


def _how_to_go_on(command: str, config: DictConfig, begun: Path | None) -> str:
    if command in RESUMED and begun is not None:
        from amc.cli.recipe import network_again  # brings torch, which a begun run has

        again = network_again(config.network)
        return f"amc {command} resume={config.resume or begun}{again} goes on with it"
    if command in CONTINUED:
        again = " without restart=true" if config.get("restart") else ""
        return f"the same command{again} goes on where it was"
    return "the same command starts it again"


def _outcome(command: str, config: DictConfig) -> int:
    """Exit code of one job.

    Raises:
        KeyboardInterrupt: Nothing caught Ctrl-C.
    """
    try:
        check_options(_as_mapping(config))
        check_folders(_as_mapping(config))
        check_overrides(HydraConfig.get().overrides.task)
        recipe: Recipe = importlib.import_module(f"amc.cli.{command}").run
        interrupted = recipe(config)
    except AmcError as error:
        return _report(error)
    except OmegaConfBaseException as error:
        return _report(ConfigError(_said_by_hydra(error)))
    except OSError as error:
        return _report(_storage_error(error))
    except Exception:
        traceback.print_exc()
        _run_log.exception("amc failed")
        return _FAILED
    if interrupted and HydraConfig.get().mode == RunMode.MULTIRUN:
        print("the sweep ends here: its later jobs were not started", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _as_mapping(config: DictConfig) -> dict[str, object]:
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _report(error: AmcError) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(str(error), markup=False)
    _run_log.error("%s", error)
    return error.exit_code


def _storage_error(error: OSError) -> AmcError:
    from amc.files import storage_error  # brings torch, which --help can do without

    return storage_error(Path(error.filename or "the output folder"), error)


# -- Hydra ---------------------------------------------------------------------------------

_OVERRIDE = re.compile(r"~|[^-][^=]*=")
_NETWORK = re.compile(r"network=([\w.:,-]+)")


def _offer_networks(arguments: Sequence[str]) -> None:
    """Make a group of ``network`` of every name on the command line that conf/ has none for.

    So ``network=resnet18`` and ``network=package.module:function`` need no file.
    """
    folder = package_files("amc.conf") / "network"
    for match in filter(None, map(_NETWORK.fullmatch, arguments)):
        for name in match[1].split(","):
            if not (folder / f"{name}.yaml").is_file():
                node: dict[str, Any] = {"name": name, "checkpoint": None, "options": {}}
                ConfigStore.instance().store(name=name, group="network", node=node)


@contextmanager
def _called_as(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """What Hydra reads from the process: its arguments, and to raise errors, not to print them."""
    flag = "HYDRA_FULL_ERROR"
    argv, full = sys.argv, os.environ.get(flag)
    # argparse wants all overrides in one piece, after the flags and their values.
    overrides = [argument for argument in arguments if _OVERRIDE.match(argument)]
    flags = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    sys.argv, os.environ[flag] = [f"amc {command}", *flags, *overrides], "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop(flag)
        if full is not None:
            os.environ[flag] = full


def _said_by_hydra(error: Exception) -> str:
    """Hydra's message without its internals."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: {error.full_key}=<value>."
    text = str(error)
    if isinstance(error, OverrideParseException) and error.override not in text:
        text = f"Error parsing override {error.override!r}: {text}"
    if isinstance(error, OmegaConfBaseException):
        text = text.partition("\n")[0]
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        text = text.partition("\n")[0] + "\nOptions are written name=value, as in run=<folder>."
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_option(unknown[1])
    if "Config group override must be" in text:
        text += "\nA number belongs to an option inside the group, as in budget.fraction=0.5."
    missing = re.match(r".*Could not find '(\w+)/([^']+)'", text)
    if missing:
        near = difflib.get_close_matches(missing[2], choices_of(missing[1]), n=1)
        hint = f". Did you mean {near[0]!r}?" if near else "."
        text = missing[0] + hint + text[missing.end() :]
    return text.partition("Config search path:")[0].rstrip()


_MEANT = {"run": ["policy"], "policy": ["run"]}  # one command's name for what another calls so


def _unknown_option(key: str) -> str:
    options = _options()
    having = options.pop(key, [])  # another command's, or of another choice of the group
    near = difflib.get_close_matches(key, sorted(options), n=1)
    near = _MEANT.get(key, near)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if "." in key and having:
        hint = f" What has it: {', '.join(having)}."
    return f"Could not override {key!r}: there is no such option.{hint} All of them: --help."


def _options() -> dict[str, list[str]]:
    """Options of all commands and groups, as written on the command line -> what has them."""
    conf = package_files("amc.conf")
    found: dict[str, list[str]] = {}
    for command in COMMANDS:
        for key, value in _yaml(conf / f"{command}.yaml").items():
            nested = value if isinstance(value, dict) else {}
            for name in (key, *(f"{key}.{inner}" for inner in nested)):
                found.setdefault(name, []).append(f"amc {command}")
    for group in sorted(entry.name for entry in conf.iterdir() if entry.is_dir()):
        if group not in NO_OPTIONS:
            for choice in choices_of(group):
                for option in _yaml(conf / group / f"{choice}.yaml"):
                    found.setdefault(f"{group}.{option}", []).append(f"{group}={choice}")
    return found


def _yaml(file: Traversable) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
