from __future__ import annotations

import errno
import io
import logging
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
from hydra.errors import HydraException

import amc_command
from amc import __version__
from amc.cli import export as export_recipe
from amc.cli import finetune as finetune_recipe
from amc.cli import profile as profile_recipe
from amc.cli import recipe
from amc.cli import search as search_recipe
from amc.cli.explain import commented
from amc.cli.mistakes import said_by_hydra
from amc.cli.recipe import Ended
from amc.errors import ArtifactError, StorageError
from amc.utils.runs import NETWORK_FILES
from tests.cli.command import SMALL, amc, search

Output = pytest.CaptureFixture[str]


# -- the entry -----------------------------------------------------------------------------


def test_help_lists_every_command(capsys: Output) -> None:
    assert amc("--help") == 0
    shown = capsys.readouterr().out
    for command in ("search", "apply", "finetune", "profile"):
        assert f"  {command}" in shown


def test_no_command_says_what_to_do_first_and_fails(capsys: Output) -> None:
    assert amc() == 2
    shown = capsys.readouterr().out
    assert "What to do first:\n\n  amc doctor" in shown
    assert "  amc search network=mynet:build" in shown


def test_version(capsys: Output) -> None:
    assert amc("--version") == 0
    assert capsys.readouterr().out == f"amc {__version__}\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("serach", "Unknown command 'serach'. Did you mean search? Known: search, compare,"),
        ("docter", "Unknown command 'docter'. Did you mean doctor? Known: search, compare,"),
        ("xyz", "Unknown command 'xyz'. Known: search, compare,"),
        ("budget.fraction=0.3", "Options come after a command: amc search budget.fraction=0.3."),
    ],
)
def test_an_unknown_command_names_the_nearest(given: str, said: str, capsys: Output) -> None:
    assert amc(given) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}")
    assert shown.count("\n") == 1


def test_arguments_of_the_process_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(sys, "argv", ["amc", "--version"])
    from amc.cli import main

    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", ["search", "finetune"])
def test_help_of_a_command_shows_its_options(command: str, capsys: Output) -> None:
    assert amc(command, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"amc {command}: ")
    assert "== Config ==" in shown


def test_configuration_is_shown_without_running_anything(capsys: Output, tmp_path: Path) -> None:
    assert amc("search", "budget.fraction=0.3", "--cfg", "job", "seed=7") == 0
    shown = capsys.readouterr().out
    assert "fraction: 0.3" in shown
    assert "seed: 7" in shown
    assert list(tmp_path.iterdir()) == []


def test_shipped_experiment_sets_network_data_and_budget(capsys: Output) -> None:
    assert amc("search", "experiment=resnet56_half_macs", "--cfg", "job") == 0
    shown = capsys.readouterr().out
    assert "name: resnet56" in shown
    assert "metric: macs" in shown
    assert "search_every: 10" in shown
    assert "evaluations: 200" in shown


# -- the network's name --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet56", "tests.cli.nets:tiny"])
def test_any_network_name_may_be_given_for_the_group(name: str, capsys: Output) -> None:
    assert amc("search", f"network={name}", "network.checkpoint=w.pt", "--cfg", "job") == 0
    shown = capsys.readouterr().out
    assert f"name: {name}\n" in shown
    assert "checkpoint: w.pt" in shown


def test_shipped_groups_keep_their_own_options(capsys: Output) -> None:
    assert amc("search", "network=mobilenet_v1", "--cfg", "job") == 0
    assert "width: 1.0" in capsys.readouterr().out


def test_a_sweep_may_mix_names_with_and_without_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        search_recipe, "run", lambda config: Ended(bool(seen.append(config.network.name)))
    )
    assert amc("search", "-m", "network=resnet18,tests.cli.nets:tiny") == 0
    assert seen == ["resnet18", "tests.cli.nets:tiny"]


# -- mistakes: one clear message, exit code 2, no traceback ---------------------------------


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("evaluations", "Error parsing override 'evaluations'"),
        ("search.evaluation=3", "no such option. Did you mean 'search.evaluations'?"),
        ("networ=resnet20", "no such option. Did you mean 'network'?"),
        ("decisions=[sparsty]", "got 'sparsty'. Did you mean 'sparsity'?"),
        ("budget=0.5", "A number belongs to an option inside the group, as in budget.fraction"),
        ("agent=dqn", "Could not find 'agent/dqn'"),
        ("seed=0,1", "Ambiguous value for argument 'seed=0,1'"),
        ("search.evaluations=abc", "search.evaluations must be a whole number from 1, got 'abc'"),
        ("reward=acuracy", "got 'acuracy'. Did you mean 'accuracy'?"),
        ("reward=tests.cli.nets:none", "nets.py has no function 'none'"),
        ("budget.fraction=abc", "budget.fraction must be a positive number, got 'abc'"),
        ("budget.metric=latency", "budget.metric must be one of latency_ms"),
        ("+budget.ms=2", "A budget has metric, fraction, absolute, keep; got ms"),
        ("env.weight_bits=8", "env.weight_bits must be a list such as [8,32], or null, got 8"),
        ("env.observation=[colour]", "env.observation has unknown features ['colour']"),
        ("recovery.images=1", "recovery.images must be at least 2"),
        ("agent.name=dpg", "Unknown agent 'dpg'. Did you mean 'ddpg'?"),
        ("device=table", "device.path must name a device table (CSV), got None"),
        ("data.name=digit", "Unknown data set 'digit'. Did you mean digits, mnist?"),
        ("~agent", "Key 'agent' is not in struct"),
        ("outputs/search/a", "Options are written name=value, as in run=<folder>."),
        (
            "policy=a",
            "Could not override 'policy': amc search has no such option. What has it: amc",
        ),
        ("~device", "latency_ms needs a device"),
    ],
)
def test_a_mistaken_option_is_said_in_one_message(argument: str, said: str, capsys: Output) -> None:
    assert search(argument) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    assert "provider=" not in shown


def test_a_group_that_does_not_exist_is_named_beside_those_that_do(capsys: Output) -> None:
    assert search("budget=speed") == 2
    assert "latency_ms\n" in capsys.readouterr().err
    assert search("budget=latency") == 2
    assert "Could not find 'budget/latency'. Did you mean 'latency_ms'?" in capsys.readouterr().err


def test_an_option_of_another_choice_of_the_group_is_said_to_be_one(capsys: Output) -> None:
    assert search("device.path=x.csv") == 2
    said = capsys.readouterr().err
    assert "What has it: device=haq, device=netadapt, device=ofa, device=table." in said


def test_an_unknown_flag_shows_the_usage(capsys: Output) -> None:
    assert search("--fast") == 2
    shown = capsys.readouterr().err
    assert "unrecognized arguments: --fast" in shown
    assert "Options are written name=value, as in amc search seed=1: no dashes" in shown


def test_two_bounds_of_a_budget_contradict_each_other(capsys: Output) -> None:
    assert search("budget.fraction=0.5", "budget.absolute=1") == 2
    said = "Give one bound of the budget, got budget.fraction=0.5 and budget.absolute=1."
    assert said in capsys.readouterr().err


def test_an_option_that_must_be_given_is_named(capsys: Output) -> None:
    assert amc("apply") == 2
    assert capsys.readouterr().err == (
        "error: policy must be given: policy=<folder of a search>, or policy=shipped, which comes "
        "with amc.\n"
    )
    assert amc("finetune") == 2
    assert capsys.readouterr().err == (
        "error: run must be given: run=<folder of a search>, as outputs/search/<date>.\n"
    )


def test_a_foreign_package_of_a_general_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "foreign" / "envs").mkdir(parents=True)
    (tmp_path / "foreign" / "envs" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "envs")
    monkeypatch.syspath_prepend(tmp_path / "foreign")
    assert search() == 2
    said = capsys.readouterr().err
    assert f"Python's package 'envs' is {tmp_path / 'foreign' / 'envs'}, not amc's own " in said
    assert str(Path(__file__).resolve().parents[2] / "envs") in said


# -- failures of the machine and of amc: exit code 1 ----------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EACCES, "error: No permission to write "),
        (errno.ENOSPC, "error: No space left on the disk while writing "),
    ],
)
def test_a_folder_that_cannot_be_written_is_said_in_one_line(
    code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    assert search("hydra.run.dir=out") == 1
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert len(shown.splitlines()) == 1
    assert "out/run.json" in shown


def test_an_output_folder_that_cannot_be_made_is_said_in_one_line(
    tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "file").write_text("")
    assert search("hydra.run.dir=file/run") == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: Could not write ")
    assert len(shown.splitlines()) == 1


def test_a_bug_shows_its_traceback_and_leaves_it_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def broken(config: object) -> Ended:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(profile_recipe, "run", broken)
    assert amc("profile", "hydra.run.dir=out") == 1
    shown = capsys.readouterr().err
    assert shown.count("RuntimeError: no such thing") == 1
    assert "Traceback" in shown
    assert "RuntimeError: no such thing" in Path("out/profile.log").read_text()


# -- what a command leaves of the process ----------------------------------------------------


def test_folder_arguments_and_environment_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(search_recipe, "run", lambda config: Ended(bool(seen.append(os.getcwd()))))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    before = sys.argv
    assert search() == 0
    assert seen == [str(tmp_path)]
    assert os.getcwd() == str(tmp_path)
    assert sys.argv is before
    assert os.environ["HYDRA_FULL_ERROR"] == "0"


def test_log_goes_to_stderr_and_with_times_into_the_run_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def talk(config: object) -> Ended:
        logging.getLogger("amc").info("hello")
        return Ended()

    monkeypatch.setattr(search_recipe, "run", talk)
    assert search("hydra.run.dir=out") == 0
    assert capsys.readouterr() == ("", "hello\n")
    assert "][amc][INFO] - hello" in Path("out/search.log").read_text()


# -- sweeps ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_failing_job_of_a_sweep_leaves_the_others_and_makes_the_exit_code_2(
    capsys: Output,
) -> None:
    assert search("-m", "budget.fraction=5,0.6", "hydra.sweep.dir=sweep") == 2
    assert not Path("sweep/0_budget.fraction-5/strategy.json").exists()
    assert "already met" in Path("sweep/0_budget.fraction-5/search.log").read_text()
    for name in ("strategy.json", "compressed.safetensors", "comparison.csv"):
        assert Path("sweep/1_budget.fraction-0.6", name).is_file()
    assert capsys.readouterr().err.count("error: budget.fraction=5 is already met") == 1


def test_jobs_of_a_sweep_run_with_their_own_values_wherever_the_flag_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, float]] = []
    monkeypatch.setattr(
        search_recipe,
        "run",
        lambda config: Ended(bool(seen.append((config.seed, config.budget.fraction)))),
    )
    assert amc("search", "seed=0,1", "-m", "budget.fraction=0.3", *SMALL) == 0
    assert seen == [(0, 0.3), (1, 0.3)]


def test_a_sweep_ends_after_the_job_that_ctrl_c_ended_early(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    seen: list[int] = []

    def ended_early(config: object) -> Ended:
        seen.append(1)
        return Ended(interrupted=True)

    monkeypatch.setattr(search_recipe, "run", ended_early)
    assert search("-m", "seed=0,1,2") == 130
    assert seen == [1]
    assert "its later jobs were not started" in capsys.readouterr().err


def test_ctrl_c_that_nothing_catches_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(config: object) -> Ended:
        raise KeyboardInterrupt

    monkeypatch.setattr(search_recipe, "run", interrupted)
    assert search("hydra.run.dir=out") == 130
    said = "interrupted by Ctrl-C: the same command starts it again\n"
    assert capsys.readouterr().err == said
    assert not Path("out").exists()


def test_a_search_refused_after_its_journal_began_leaves_no_folder(capsys: Output) -> None:
    assert search("budget=macs", "budget.fraction=0.001", "hydra.run.dir=out") == 2
    assert "smallest reachable" in capsys.readouterr().err
    assert not Path("out").exists()


def test_ctrl_c_after_the_first_trials_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(config: object) -> Ended:
        with closing(sqlite3.connect("out/journal.sqlite")) as journal:
            journal.execute("CREATE TABLE trials (evaluation INTEGER)")
            journal.execute("INSERT INTO trials VALUES (1)")
            journal.commit()
        Path("out/run.json").write_text('{"network": {"name": "tests.cli.nets:tiny"}}')
        raise KeyboardInterrupt

    monkeypatch.setattr(search_recipe, "run", interrupted)
    assert search("hydra.run.dir=out") == 130
    said = capsys.readouterr().err
    resume = f"amc search resume={Path('out').resolve()} network=tests.cli.nets:tiny"
    assert said == f"interrupted by Ctrl-C: {resume} goes on with it\n"
    assert Path("out/.hydra").is_dir()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("finetune", "the same command goes on where it was"),
        ("export", "the same command starts it again"),
    ],
)
def test_ctrl_c_in_a_command_without_a_folder_removes_nothing(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(config: object) -> Ended:
        raise KeyboardInterrupt

    module = {"finetune": finetune_recipe, "export": export_recipe}[command]
    monkeypatch.setattr(module, "run", interrupted)
    for name in ("run.json", *NETWORK_FILES):
        (tmp_path / name).touch()
    assert amc(command, f"run={tmp_path}") == 130
    assert capsys.readouterr().err == f"interrupted by Ctrl-C: {said}\n"
    assert (tmp_path / "run.json").exists()


def test_ctrl_c_while_the_program_is_loaded_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    class Interrupted(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "amc.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "amc.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as leaving:
        amc_command.main()
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "interrupted by Ctrl-C before anything began\n"


def test_the_command_loads_nothing_before_it_hears_ctrl_c() -> None:
    code = "import sys, amc_command; print(sorted({'amc', 'numpy', 'gymnasium'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_refused_command_leaves_no_folder_and_touches_no_other_run(capsys: Output) -> None:
    assert search("budget.fraction=-1", "hydra.run.dir=new") == 2
    assert not Path("new").exists()
    for name in ("run.json", "search.log"):
        Path("old").mkdir(exist_ok=True)
        Path("old", name).write_text("{}")
    assert search("hydra.run.dir=old") == 2
    assert "old already holds a run. Nothing was changed" in capsys.readouterr().err
    assert Path("old/run.json").read_text() == "{}"


def test_a_refused_command_does_not_remove_the_folder_it_was_called_in(tmp_path: Path) -> None:
    assert search("budget.fraction=-1", "hydra.run.dir=.") == 2
    assert tmp_path.is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "run=no"], "Run folder not found: no."),
        (["export", "run=no"], "Run folder not found: no."),
        (
            ["apply", "policy=no"],
            "Run folder not found: no. Give the folder of a search. Or policy=shipped, which comes",
        ),
        (["apply"], "policy must be given: policy=<folder of a search>, or policy=shipped"),
        (["compare", "agents=[ddpg,foo]"], "Unknown agent 'foo'. Known: cma_es, ddpg,"),
        (["search", "network.checkpoint=no.pt"], "Checkpoint not found: no.pt."),
        (["search", "network.checkpoint=no.gz"], "must be one of .safetensors, .pt, .pth, got"),
        (["search", "budget.fraction=2"], "budget.fraction=2 is already met by the original"),
        (["compare", "budget.keep=-1"], "budget.keep must be a number from 0, got -1."),
    ],
)
def test_common_mistakes_are_told_before_torch_is_loaded(arguments: list[str], said: str) -> None:
    code = (
        "import sys, amc.cli\n"
        "try: amc.cli.main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 False\n"
    assert said in done.stderr


# -- what --help adds ----------------------------------------------------------------------


def test_help_says_what_the_options_mean(capsys: Output) -> None:
    assert amc("search", "--help", "agent=evolution") == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^  search\.images +of the search split, on which each is evaluated$", shown, re.M
    )
    assert re.search(r"^  budget\.fraction +of the original network's$", shown, re.M)
    assert re.search(r"^  agent\.population +individuals alive; ", shown, re.M)
    assert "agent.actor_lr" not in shown  # of the agent that was not chosen
    assert amc("search", "--cfg", "job") == 0
    assert "What options mean" not in capsys.readouterr().out


def test_help_lists_the_groups_of_the_command_alone(capsys: Output) -> None:
    assert amc("search", "--help", "device=roofline_phone") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^  network +adder_resnet20, custom, .*vision\n +also the name", shown, re.M)
    assert "package.module:function that returns your torch.nn.Module" in shown
    assert "roofline_phone: A model, not a measurement: one big core" in shown
    assert "Hydra" not in shown
    assert amc("export", "--help") == 0
    shown = capsys.readouterr().out
    assert "agent" not in shown
    assert re.search(r"^  network +network=package.module:function confirms that", shown, re.M)


def test_help_of_apply_says_that_groups_come_from_the_run(capsys: Output) -> None:
    assert amc("apply", "--help") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^  device +custom, .*\n +null: the device of the run that l", shown, re.M)


def test_comments_of_options_are_found_with_their_names_and_their_second_lines() -> None:
    text = """# not this one
one: 1        # first
group:        # of two
  inner: [2]  # second,
              # and more
  silent: 3
  list: '#'   # third
last: null    # fourth
hydra:
  job: 1      # hidden
"""
    assert commented(text) == [
        ("one", "first"),
        ("group", "of two"),
        ("group.inner", "second, and more"),
        ("group.list", "third"),
        ("last", "fourth"),
    ]


# -- words that help ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "argument", "said"),
    [
        (
            "search",
            "run=x",
            "amc search has no such option. What has it: amc export, amc finetune. amc search "
            "takes a run as resume=<folder>. All of them: amc search --help.",
        ),
        (
            "finetune",
            "policy=x",
            "amc finetune has no such option. What has it: amc apply. amc finetune takes a run "
            "as run=<folder>.",
        ),
        ("search", "epochs=3", "amc search has no such option. What has it: amc finetune. All"),
        (
            "export",
            "seed=3",
            "What has it: amc apply, amc finetune, amc search, amc train. All",
        ),
        ("search", "evaluation=3", "no such option. Did you mean 'search.evaluations'?"),
    ],
)
def test_an_option_of_another_command_is_said_to_be_one(
    command: str, argument: str, said: str, capsys: Output
) -> None:
    assert amc(command, argument) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("hydra/launcher=rq", "not installed: pip install hydra-rq-launcher.\n"),
        (
            "hydra/sweeper=ax",
            "hydra/sweeper=ax is in a package that is not installed: pip install hydra-ax-sweeper.",
        ),
        ("hydra/sweeper=optina", "There is no hydra/sweeper=optina. Did you mean 'optuna'? Known:"),
    ],
)
def test_a_launcher_or_sweeper_that_is_missing_says_which_package_has_it(
    argument: str, said: str, capsys: Output
) -> None:
    assert search("-m", argument, "seed=0,1") == 2
    assert said in capsys.readouterr().err


def test_the_package_of_a_missing_plugin_is_that_of_all_its_variants() -> None:
    said = said_by_hydra(HydraException("Could not find 'hydra/launcher/submitit_slurm'"), "search")
    assert said.endswith("not installed: pip install 'amc-compress[submitit]'.")
    said = said_by_hydra(HydraException("Could not find 'hydra/sweeper/optuna'"), "search")
    assert "pip install hydra-optuna-sweeper. It needs Optuna 2, and the agents tpe" in said


@pytest.mark.parametrize(
    ("given", "module"),
    [
        ("./mynet.py:build", "mynet:build"),
        ("mynet.py", "mynet:<name>"),
        ("nets/mynet.py:build", "nets.mynet:build"),
        ("nets/../mynet:build", "mynet:build"),
        ("/elsewhere/mynet.py:build", "mynet:build, called from /elsewhere"),
    ],
)
def test_a_network_that_is_named_by_its_file_is_told_its_module(
    given: str, module: str, capsys: Output
) -> None:
    assert amc("search", f"network={given}") == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: network={given} names a file. A network is a function, package.module:function: "
        f"network={module}.\n"
    )


def test_an_unfinished_run_is_refused_with_what_finishes_it(capsys: Output) -> None:
    run = Path("outputs/search/killed")
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"kind": "search"}')
    assert amc("apply", f"policy={run}") == 2
    assert "run.json is not of format 'amc-run'" in capsys.readouterr().err
    for command in ("finetune", "export"):
        assert amc(command, f"run={run}") == 2
        said = capsys.readouterr().err
        assert f"amc search resume={run} goes on with it.\n" in said
        assert amc(command, f"run={run.parent}") == 2
        said = capsys.readouterr().err
        assert "run.json not found. The search in outputs/search/killed is unfinished" in said


# -- any locale -----------------------------------------------------------------------------


def test_output_is_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def show(config: object) -> Ended:
        recipe.console_for_tables().print("0.146 ± 0.001 ms in dé/\udcff")
        logging.getLogger("amc").info("dé")
        raise ArtifactError("dé/\udcff")

    monkeypatch.setattr(search_recipe, "run", show)
    assert search("hydra.run.dir=out") == 2
    for stream in streams:
        stream.flush()
    out, err = [stream.buffer.getvalue().decode("utf-8") for stream in streams]
    assert out == "0.146 ± 0.001 ms in dé/\\udcff\n"
    assert err == "dé\nerror: dé/\\udcff\n"


def test_the_log_in_the_run_folder_is_utf8_whatever_the_locale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(config: object) -> Ended:
        raise StorageError("dé/\udcff")

    monkeypatch.setattr(search_recipe, "run", fail)
    assert search("hydra.run.dir=out") == 1
    assert "[ERROR] - dé/\\udcff" in Path("out/search.log").read_text(encoding="utf-8")


def test_names_of_files_are_text_in_a_locale_that_knows_ascii_only(tmp_path: Path) -> None:
    code = "import sys, amc_command; sys.argv = ['amc', *sys.argv[1:]]; amc_command.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "finetune", "run=dé/no"],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 2
    said = "error: Run folder not found: dé/no. Give the folder of a search.\n"
    assert done.stderr.decode("utf-8") == said


def test_a_value_with_letters_that_hydra_does_not_know_needs_no_quotes(capsys: Output) -> None:
    for given in ("run=dé/no", "run='dé/no'"):
        assert amc("finetune", given) == 2
        assert "Run folder not found: dé/no." in capsys.readouterr().err
    assert amc("finetune", "run=dé/(1)") == 2
    assert "run=dé/(1) has characters that must be quoted, twice" in capsys.readouterr().err


def test_output_that_nobody_reads_on_is_no_traceback() -> None:
    """As in ``amc search --help | head -1``."""
    code = "from amc_command import main; main()"
    command = [sys.executable, "-c", code, "search", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read().decode()
    assert said == ""
    assert running.returncode == 1
