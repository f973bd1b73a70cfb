"""One entry for all commands: options by Hydra, errors in one line, exit codes that mean it."""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from amc import __version__
from amc.cli.check import check_early, check_folders, check_options, check_overrides
from amc.cli.completion import complete, is_completion, words_typed
from amc.cli.doctor import doctor
from amc.cli.explain import explanations
from amc.cli.isolated import is_launched, run_isolated
from amc.cli.mistakes import said_by_hydra
from amc.cli.offered import offer_names
from amc.cli.optimize import (
    OBJECTIVE_COMMANDS,
    check_directions,
    directions_for_optuna,
    directions_of,
    objectives_of,
)
from amc.cli.sweep import REPORT, answered, folders_as_option, names_of_jobs
from amc.cli.unbegun import has_begun, remove_unbegun
from amc.errors import AmcError, ConfigError
from amc.utils.packages import check_packages
from amc.utils.runs import LEAVING_RUNS, RESUMED, RUN_FILE, resume_command
from amc.utils.working import working_in

if TYPE_CHECKING:
    from amc.cli.recipe import Ended

Recipe = Callable[[DictConfig], "Ended"]
"""Runs a command."""

COMMANDS = {
    "search": "find a smaller network within a budget",
    "compare": "searchers beside each other, over seeds",
    "train": "learn a policy over many networks, budgets and devices",
    "apply": "compress a network by a learned policy, without a search",
    "finetune": "train the compressed network of a run",
    "export": "write the compressed network of a run as ONNX, check and time it",
    "profile": "measure a device's latency table for a network",
    "report": "one table, one page of runs: of a sweep, or of any folders",
}

TOOLS = {"doctor": "what is installed here, and what is missing for what"}  # without options
CONTINUED = ("finetune", "profile")  # by the same command once more
LEAVING_NOTHING = ("profile",)  # in their folder: what they make goes elsewhere
HELP = {"-h", "--help"}

TITLE = f"amc {__version__}: make a trained network run faster on a given device, within a budget"

FIRST = f"""\
{TITLE}

What to do first:

  amc doctor        what is installed here, and what is missing for what
  amc search        a first search: trains ResNet-20 on small images of digits, measures this
                    machine, tries 60 strategies; some minutes, and nothing is downloaded
  amc search network=mynet:build data=image_folder data.root=photos budget.fraction=0.5
                    your own: build() in mynet.py returns the trained network, photos/ has
                    train/<class>/*.jpg and test/<class>/*.jpg, or images alone

All commands: amc --help
"""

USAGE = """\
{title}

  amc <command> [key=value ...] [-m]

{commands}

  amc <command> --help     all options of a command, with their groups
  amc <command> --cfg job  the configuration that would be used
  amc <command> -m seed=0,1 budget.fraction=0.3,0.5     a sweep
  amc report <folders>     runs beside each other: a sweep's ends with it

  amc -sc install=bash     completion, for: eval "$(amc -sc install=bash)"; fish: install=fish

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
    _print_utf8()
    if is_completion(given):
        sys.exit(complete(given, [*COMMANDS, *TOOLS], _complete_options))
    if given and given[0] in COMMANDS:
        sys.exit(_run(given[0], given[1:]))
    if given and given[0] == "--version":
        print(f"amc {__version__}")
    elif given and given[0] in TOOLS:
        sys.exit(_run_tool(given[0], given[1:]))
    elif given and given[0] not in (*HELP, "help"):
        sys.exit(_report(ConfigError(_unknown_command(given))))
    else:
        print(_usage() if given else FIRST)
    sys.exit(0 if given else 2)


def _print_utf8() -> None:
    """Let output be UTF-8 whatever the locale, and let nothing that it lacks end a command.

    Names of files may hold bytes that are no text: they are shown by their numbers.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _usage() -> str:
    lines = [f"  {name:10} {what}" for name, what in (COMMANDS | TOOLS).items()]
    return USAGE.format(title=TITLE, commands="\n".join(lines))


def _unknown_command(given: Sequence[str]) -> str:
    known = [*COMMANDS, *TOOLS]
    if _OVERRIDE.match(given[0]):
        return f"Options come after a command: amc search {shlex.join(given)}."
    near = difflib.get_close_matches(given[0], known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"Unknown command {given[0]!r}. {hint}Known: {', '.join(known)}. More: amc --help."


def _run_tool(name: str, arguments: Sequence[str]) -> int:
    if not HELP.isdisjoint(arguments):
        print(f"amc {name}: {TOOLS[name]}. It takes no options.")
        return 0
    if arguments:
        return _report(ConfigError(f"amc {name} takes no options, got {' '.join(arguments)}."))
    print(doctor())
    return 0


def _complete_options(command: str, arguments: Sequence[str]) -> int:
    return _run(command, arguments) if command in COMMANDS else 0


def _run(command: str, arguments: Sequence[str]) -> int:
    codes: list[int] = []

    def job(config: DictConfig) -> float | list[float] | None:
        launched = is_launched()
        code, objective = (
            run_isolated(run_job, command, config) if launched else run_job(command, config)
        )
        codes.append(code)
        if code == _INTERRUPTED and not launched:
            raise KeyboardInterrupt  # ends the sweep
        if code and (launched or _optimises()):  # a launcher's processes do not share `codes`
            raise _FailedJobError(_where_it_failed(command), code)
        return objective

    job.__module__ = __name__
    start = hydra.main(version_base="1.3", config_path="pkg://amc.conf", config_name=command)(job)
    try:
        check_packages()
        offer_names(words_typed(arguments))
        if command in RESUMED and any(a.startswith("resume=") for a in arguments):
            from amc.cli.resume import place_of_resumed  # brings torch; --help can do without

            arguments = [*arguments, *place_of_resumed(arguments, command)]
        if command in OBJECTIVE_COMMANDS:
            arguments = [*arguments, *directions_for_optuna(arguments)]
        if command == REPORT:
            arguments = folders_as_option(arguments)
        if command in LEAVING_RUNS:
            arguments = [*arguments, *names_of_jobs(arguments)]
        with _called_as(command, arguments), answered(_report) as unsaid:
            start()
        codes += unsaid
    except KeyboardInterrupt:
        if not codes:
            print("interrupted by Ctrl-C before anything began", file=sys.stderr)
        return _INTERRUPTED
    except AmcError as error:
        return _report(error)
    except _FailedJobError as failed:
        if failed.code not in codes:
            print(failed.said, file=sys.stderr)
        return max([*codes, failed.code])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return _report(ConfigError(said_by_hydra(error, command, arguments)))
    except BrokenPipeError:  # nobody reads on: `amc_command` ends quietly
        raise
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


class _FailedJobError(Exception):
    """A job of a sweep failed, with what is to be said, and its exit code.

    Sweepers that optimise get nothing of it; launchers carry it over from the process of the job.
    """

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said, code)
        self.said, self.code = said, code


def _where_it_failed(command: str) -> str:
    hydra_config = HydraConfig.get()
    log = Path(hydra_config.runtime.output_dir) / f"{command}.log"
    return f"job {hydra_config.job.num} failed; why is in {log}. The other jobs were not ended."


def _optimises() -> bool:
    """Whether the sweeper wants objectives."""
    return directions_of(_sweeper()) is not None


def _sweeper() -> dict[str, object]:
    """Hydra's options of the sweeper; none without a sweep."""
    hydra_config = HydraConfig.get()
    return _as_mapping(hydra_config.sweeper) if hydra_config.mode == RunMode.MULTIRUN else {}


def run_job(command: str, config: DictConfig) -> tuple[int, float | list[float] | None]:
    """Run one job: its exit code, and its objective.

    An error ends the job, not the sweep: the other jobs' results count.

    A job that was refused or interrupted before it began leaves no folder.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    may_remove = _is_single_and_new(folder)
    interrupted, objective = False, None
    try:
        code, objective = _outcome(command, config, folder)
    except KeyboardInterrupt:
        code, interrupted = _INTERRUPTED, True
    begun = has_begun(folder, command)
    ended = (_REFUSED, _INTERRUPTED, *((0,) if command in LEAVING_NOTHING else ()))
    if code in ended and may_remove and not begun:
        remove_unbegun(folder, command)
    if interrupted:
        advice = _how_to_go_on(command, config, folder if begun else None)
        print(f"interrupted by Ctrl-C: {advice}", file=sys.stderr)
    return code, objective


def _is_single_and_new(folder: Path) -> bool:
    """Whether the folder is of this call alone: not the user's, of a sweep, or of another run."""
    hydra_config = HydraConfig.get()
    single = hydra_config.mode == RunMode.RUN and hydra_config.output_subdir is not None
    return single and folder != Path.cwd() and not (folder / RUN_FILE).exists()


def _how_to_go_on(command: str, config: DictConfig, begun: Path | None) -> str:
    if command in RESUMED and begun is not None:
        return f"{resume_command(Path(config.resume or begun))} goes on with it"
    if command in CONTINUED:
        again = " without restart=true" if config.get("restart") else ""
        return f"the same command{again} goes on where it was"
    return "the same command starts it again"


def _outcome(
    command: str, config: DictConfig, folder: Path
) -> tuple[int, float | list[float] | None]:
    """Exit code and objective of one job.

    Raises:
        KeyboardInterrupt: Nothing caught Ctrl-C.
    """
    try:
        check_options(_as_mapping(config))
        check_given(config)
        check_folders(_as_mapping(config))
        check_early(_as_mapping(config))
        check_overrides(HydraConfig.get().overrides.task)
        check_directions(command, objectives_of(config.get("optimize", [])), _sweeper())
        recipe: Recipe = importlib.import_module(f"amc.cli.{command}").run
        with working_in(folder) if command in LEAVING_RUNS else nullcontext():
            interrupted, objective = recipe(config)
    except AmcError as error:
        return _report(error), None
    except OmegaConfBaseException as error:
        return _report(ConfigError(said_by_hydra(error, command))), None
    except OSError as error:
        return _report(_storage_error(error)), None
    except Exception:
        traceback.print_exc()
        _run_log.exception("amc failed")
        return _FAILED, None
    if interrupted and HydraConfig.get().mode == RunMode.MULTIRUN:
        print("the sweep ends here: its later jobs were not started", file=sys.stderr)
        return _INTERRUPTED, None
    return 0, objective


def check_given(config: DictConfig) -> None:
    """Check that options without a default were given, groups aside.

    Raises:
        omegaconf.errors.MissingMandatoryValue: One was not.
    """
    for key in config:
        if OmegaConf.is_missing(config, key):
            _ = config[key]


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
    from amc.utils.files import storage_error  # brings torch, which --help can do without

    return storage_error(Path(error.filename or "the output folder"), error)


# -- Hydra ---------------------------------------------------------------------------------

_SPECIAL = frozenset("'\"\\[]{}(),$")
_OVERRIDE = re.compile(r"~|[^-][^=]*=")


def _quoted(override: str) -> str:
    """An override whose value Hydra takes for text, where it has characters that Hydra lacks.

    Values that are quoted, lists and sweeps are left to the user's own quotes.
    """
    name, _, value = override.partition("=")
    if value.isascii() or not _SPECIAL.isdisjoint(value):
        return override
    return f"{name}='{value}'"


@contextmanager
def _called_as(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """What Hydra reads from the process: its arguments, and to raise errors, not to print them."""
    flag = "HYDRA_FULL_ERROR"
    argv, full = sys.argv, os.environ.get(flag)
    # argparse wants all overrides in one piece, after the flags and their values.
    overrides = [_quoted(argument) for argument in arguments if _OVERRIDE.match(argument)]
    flags = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    program = "amc" if is_completion(arguments) else f"amc {command}"
    sys.argv, os.environ[flag] = [program, *flags, *overrides], "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop(flag)
        if full is not None:
            os.environ[flag] = full
