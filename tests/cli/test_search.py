from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amc import api
from amc.cli import recipe
from amc.cli.recipe import data_of
from amc.cli.search import next_commands
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.table import write_table
from amc.errors import AmcError, StorageError
from amc.graph.types import Signature
from amc.networks import build_network
from amc.objectives import DEFAULT
from amc.problem import task
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from amc.study import recorder as recording
from amc.study.artifact import RunRecord, read_strategy
from tests.cli.command import NETWORK, search

Output = pytest.CaptureFixture[str]
FILES = {
    ".hydra",
    "comparison.csv",
    "comparison.md",
    "compressed.json",
    "compressed.safetensors",
    "journal.sqlite",
    "learning_curve.png",
    "policy.json",
    "policy.safetensors",
    "report.html",
    "result.json",
    "run.json",
    "search.log",
    "strategy.json",
    "strategy.png",
    "trials.csv",
}


def _result_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _result_of(folder: Path) -> dict[str, list[str]]:
    """Row name -> cells of a run's comparison."""
    with (folder / "comparison.csv").open() as file:
        return {cells[0]: cells for cells in list(csv.reader(file))[1:]}


# -- what a search leaves ------------------------------------------------------------------


def test_search_leaves_every_file_that_the_readme_of_outputs_lists(searched: Path) -> None:
    names = {path.name for path in searched.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == FILES
    readme = (Path(__file__).resolve().parents[2] / "outputs" / "README.md").read_text()
    assert [name for name in FILES if f"`{name}" not in readme] == []
    assert {path.name for path in (searched / ".hydra").iterdir()} >= {
        "config.yaml",
        "overrides.yaml",
    }


def test_search_has_a_row_for_every_evaluation_and_three_to_compare(searched: Path) -> None:
    with (searched / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert [row["evaluation"] for row in trials] == ["1", "2", "3"]
    assert all(float(row["cost/latency_ms"]) > 0 for row in trials)
    assert list(_result_of(searched)) == ["original", "uniform", "best found"]


def test_tensorboard_shows_the_search_by_the_names_that_its_users_know(searched: Path) -> None:
    events = EventAccumulator(str(searched)).Reload()
    tags = events.Tags()
    assert {"result/strategy", "result/best_so_far", "strategy"} == set(tags["images"])
    assert {"reward", "best_reward", "rollout/ep_rew_mean", "time/fps"} <= set(tags["scalars"])
    rewards = [event.value for event in events.Scalars("reward")]
    means = [event.value for event in events.Scalars("rollout/ep_rew_mean")]
    assert means == pytest.approx([np.mean(rewards[: n + 1]) for n in range(3)])
    steps = [event.value for event in events.Scalars("time/total_timesteps")]
    assert steps == [3, 6, 9]  # a step for each of three layers
    assert {event.value for event in events.Scalars("rollout/ep_len_mean")} == {3}


def test_the_row_of_a_run_in_tensorboard_is_live_and_ends_with_what_was_measured(
    searched: Path,
) -> None:
    events = EventAccumulator(str(searched)).Reload()
    content = events.PluginTagToContent("hparams")
    assert set(content) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    original, _, best = _result_rows(searched)
    for tag, value in (
        ("result/speed_up", float(original["measured_ms"]) / float(best["measured_ms"])),
        ("result/size_ratio", float(best["size_bytes"]) / float(original["size_bytes"])),
        (
            "result/accuracy_lost",
            float(original["test_accuracy"]) - float(best["test_accuracy"]),
        ),
    ):
        shown = events.Scalars(tag)
        assert len(shown) >= 2, tag  # of the best so far, and of the result
        assert shown[0].step <= 3
        assert shown[-1].step == 4
        assert shown[-1].value == pytest.approx(value), tag


def test_tensorboard_has_the_command_that_makes_the_run_again(searched: Path) -> None:
    events = EventAccumulator(str(searched)).Reload()
    (command,) = events.Tensors("command/text_summary")
    said = command.tensor_proto.string_val[0].decode()
    assert said.startswith("`amc search network=tests.cli.nets:tiny data=digits")


def test_a_search_leaves_its_page(searched: Path) -> None:
    page = (searched / "report.html").read_text()
    assert "as fast as the original" in page
    assert "amc search network=tests.cli.nets:tiny" in page
    assert "evaluations</p>" not in page  # nothing says that it is not at its end


def test_run_record_holds_what_the_search_was_asked(searched: Path) -> None:
    record = RunRecord.read(searched)
    assert record.kind == "search"
    assert record.network["name"] == "tests.cli.nets:tiny"
    assert record.data["name"] == "digits"
    assert record.device["name"] == "roofline_phone"
    budget = {"metric": "latency_ms", "fraction": 0.6, "absolute": None, "keep": None}
    assert record.budget == budget
    assert record.settings["search"]["evaluations"] == 3
    assert record.settings["agent"]["name"] == "ddpg"


def test_compressed_network_is_used_from_python_with_the_accuracy_that_was_reported(
    searched: Path,
) -> None:
    data = data_of(RunRecord.read(searched).data)
    original = build_network("tests.cli.nets:tiny", num_classes=10, image_shape=data.image_shape)
    smaller = api.load_compressed(searched, original, data.image_shape)
    images = data.test.normalised(data.mean, data.std)
    with torch.inference_mode():
        right = (smaller(images).argmax(1) == data.test.labels).double().mean().item()
    with (searched / "comparison.csv").open() as file:
        best = list(csv.DictReader(file))[-1]
    assert float(best["test_accuracy"]) == pytest.approx(right, abs=1e-6)
    layers = [m for m in smaller.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    folded = sum(layer.weight.numel() + len(layer.weight) for layer in layers)  # a bias each
    assert folded == int(best["params"])


@pytest.mark.usefixtures("quick")
def test_the_same_seed_gives_the_same_bytes(searched: Path) -> None:
    assert search("hydra.run.dir=again") == 0
    for name in ("strategy.json", "compressed.json", "compressed.safetensors", "policy.json"):
        assert Path("again", name).read_bytes() == (searched / name).read_bytes()


@pytest.mark.usefixtures("quick")
def test_random_agent_with_another_seed_tries_other_strategies() -> None:
    for seed in (0, 1):
        assert search("agent=random", f"seed={seed}", f"hydra.run.dir=s{seed}") == 0
    trials = [_tried(Path(f"s{seed}")) for seed in (0, 1)]
    assert trials[0] != trials[1]


def _tried(folder: Path) -> list[str]:
    with (folder / "trials.csv").open() as file:
        return [row["cost/macs"] for row in csv.DictReader(file)]


@pytest.mark.usefixtures("quick")
def test_search_without_a_policy_leaves_no_policy_and_all_its_trials() -> None:
    arguments = ("agent=uniform", "search.evaluations=60", "budget=macs", "hydra.run.dir=out")
    assert search("~device", *arguments) == 0
    assert not Path("out/policy.json").exists()
    assert len(_tried(Path("out"))) == 1  # float is the only pair of bits that macs know
    assert RunRecord.read(Path("out")).device == {}


@pytest.mark.usefixtures("quick")
def test_output_ends_with_the_table_the_folder_and_the_next_commands(capsys: Output) -> None:
    assert search("agent=random", "hydra.run.dir=out") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.partition("   ")[0] for line in lines[-4:]] == [
        f"written to {Path.cwd() / 'out'}",
        "next:",
        f"  amc export run=out {NETWORK}",
        f"  amc finetune run=out epochs=3 {NETWORK}",
    ]
    assert any(line.startswith("note: Measured in PyTorch on this machine") for line in lines)
    assert "best found" in shown.out
    assert "smallest reachable" in shown.err


# -- what a search cannot do ---------------------------------------------------------------


def _checkpoint_of(network: torch.nn.Module) -> str:
    torch.save(network.state_dict(), "weights.pt")
    return "network.checkpoint=weights.pt"


def test_a_checkpoint_of_another_architecture_is_refused(capsys: Output) -> None:
    given = _checkpoint_of(torch.nn.Linear(3, 10))
    assert search(given) == 2
    assert "seems to be of another architecture than this Tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("network=resnet65", "Unknown network 'resnet65'. Did you mean resnet56"),
        ("network=tests.cli.nets:missing", "has no function 'missing'"),
        ("network=tests.cli.nets:undecided", "must be a torch.nn.Module"),
        ("network=tests.cli.nets:broken", "returns NaN or infinity"),
        ("network.checkpoint=none.pt", "Checkpoint not found: "),
        ("+network.options.image_shape=7", "network.options must not hold image_shape"),
        ("budget.fraction=0.01", "below the smallest reachable"),
        ("budget={fraction:null,absolute:99}", "is already met"),
        ("search.reaim=1", "search.reaim compares the budget with what is measured"),
    ],
)
def test_what_does_not_fit_is_said_in_one_message(argument: str, said: str, capsys: Output) -> None:
    assert search(argument) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("error: ") == 1
    assert "Traceback" not in shown


def test_missing_data_folder_is_named(capsys: Output) -> None:
    assert search("data=image_folder", "data.root=no/such/folder") == 2
    assert "no/such/folder" in capsys.readouterr().err


def test_network_without_weights_on_other_data_than_digits_is_refused(
    tmp_path: Path, capsys: Output
) -> None:
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (32, 32)).save(folder / f"{index}.png")
    given = ("data=image_folder", "data.root=images", "network=lenet_5")
    assert search(*given, "data.search=2", "data.calibration=2") == 2
    assert "has no weights for data 'image_folder'. Give a trained" in capsys.readouterr().err


def test_a_table_with_nan_is_refused_before_anything_runs(capsys: Output) -> None:
    header = TableHeader("board", "torch", 1, 1, 8, (FLOAT,))
    linear = Signature("linear")
    rows = {Request(linear, 8, 8, FLOAT): Measurement(1234.5, 0.0, 3)}
    write_table(TableDevice(header, rows), Path("board.csv"))
    text = Path("board.csv").read_text()
    assert "1234.5" in text
    Path("board.csv").write_text(text.replace("1234.5", "nan"))
    assert search("device=table", "device.path=board.csv") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "nan" in shown


# -- Ctrl-C --------------------------------------------------------------------------------


def _press_ctrl_c(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Send SIGINT after the first evaluation."""
    note = recording.Recorder._note

    def noted(self: recording.Recorder, *arguments: object) -> None:
        note(self, *arguments)  # type: ignore[arg-type]
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(recording.Recorder, "_note", noted)


def test_evaluations_that_a_later_aim_asked_for_count_as_left(
    tmp_path: Path, capsys: Output
) -> None:
    task = SimpleNamespace(objective=DEFAULT)
    found = SimpleNamespace(comparison=[], notes=[], trials=[None] * 65, policy=object(), task=task)
    recipe.show(SimpleNamespace(**vars(found), interrupted=True, evaluations=75), tmp_path)
    assert "ended early by Ctrl-C after 65 of 75 evaluations\n" in capsys.readouterr().out
    recipe.show(SimpleNamespace(**vars(found), interrupted=True, evaluations=65), tmp_path)
    assert "ended early" not in capsys.readouterr().out


def test_ctrl_c_ends_a_search_early_with_all_its_files(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    _press_ctrl_c(monkeypatch, 1)
    assert search("agent.warm_start=none", "agent.warmup=0", "hydra.run.dir=out") == 0
    shown = capsys.readouterr()
    assert "ended early by Ctrl-C after 1 of 3 evaluations" in shown.out
    assert "Ctrl-C: ending with what was found so far" in shown.err
    names = {path.name for path in Path("out").iterdir()}
    assert names >= FILES
    assert len(_tried(Path("out"))) == 1


@pytest.mark.usefixtures("quick")
def test_second_ctrl_c_stops_at_once_and_the_best_so_far_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    _press_ctrl_c(monkeypatch, 2)
    assert search("hydra.run.dir=out") == 130
    shown = capsys.readouterr()
    assert "the best of 1 evaluations is in " in shown.err
    assert "interrupted by Ctrl-C" in shown.err
    read_strategy(Path("out"))
    assert len(_tried(Path("out"))) == 1
    assert not Path("out/comparison.csv").exists()


@pytest.mark.usefixtures("quick")
def test_ctrl_c_while_the_best_are_repaired_keeps_the_best_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("amc.study.search.conclude", interrupted)
    assert search("hydra.run.dir=out") == 130
    assert "the best of 3 evaluations is in " in capsys.readouterr().err
    read_strategy(Path("out"))


@pytest.mark.usefixtures("quick")
def test_ctrl_c_in_a_sweep_ends_it_after_writing_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    _press_ctrl_c(monkeypatch, 1)
    assert search("-m", "seed=0,1", "hydra.sweep.dir=sweep") == 130
    assert Path("sweep/0_seed-0/comparison.csv").is_file()
    assert not Path("sweep/1_seed-1").exists()
    assert "its later jobs were not started" in capsys.readouterr().err


def test_ctrl_c_while_the_base_network_trains_says_that_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amc.study.finetuning.train", interrupted)
    assert search("network=lenet_5") == 130
    said = capsys.readouterr().err
    assert "Ctrl-C: nothing is kept of an unfinished base training" in said
    assert said.endswith("interrupted by Ctrl-C: the same command starts it again\n")


def test_ctrl_c_while_measuring_says_where_the_prices_are(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "device_for_network", interrupted)
    assert search("device=torch_cpu") == 130
    said = capsys.readouterr().err
    assert "Ctrl-C: what was measured of torch_cpu is kept in " in said
    assert "torch_cpu-b16-t1-" in said


@pytest.mark.usefixtures("quick")
def test_an_error_in_the_middle_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    calls = []
    evaluate = task.CompressionTask.evaluate

    def failing(self: task.CompressionTask, strategy: object) -> object:
        calls.append(strategy)
        if len(calls) == 3:
            raise AmcError("no more")
        return evaluate(self, strategy)  # type: ignore[arg-type]

    monkeypatch.setattr(task.CompressionTask, "evaluate", failing)
    assert search("agent=random", "hydra.run.dir=out") == 2
    assert capsys.readouterr().err.endswith("error: no more\n")
    assert len(_tried(Path("out"))) == 2
    assert json.loads(Path("out/strategy.json").read_text())["format"] == "amc-strategy"


def test_a_sweep_over_budgets_writes_one_folder_per_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.cli.recipe.check_problem", _not_searched)
    assert search("-m", "budget.fraction=0.5,0.6", "hydra.sweep.dir=sweep") == 1
    for job, fraction in enumerate((0.5, 0.6)):
        assert (
            RunRecord.read(Path(f"sweep/{job}_budget.fraction-{fraction}")).budget["fraction"]
            == fraction
        )


def _not_searched(*_: object, **__: object) -> None:
    raise StorageError("not searched")


def test_paths_are_recorded_as_they_are_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amc.cli.recipe.check_problem", _not_searched)
    assert search("device=table", "device.path=a.csv", "hydra.run.dir=out") == 1
    assert RunRecord.read(Path("out")).device["path"] == str(Path.cwd() / "a.csv")


def test_agent_and_device_of_ones_own_need_no_file() -> None:
    agent, device = "docs.examples.hill_climb:HillClimb", "docs.examples.toy_board:ToyBoard"
    assert search(f"agent={agent}", "+agent.noise=0.1", "hydra.run.dir=out") == 0
    record = RunRecord.read(Path("out"))
    assert record.settings["agent"] == {"name": agent, "noise": 0.1}
    given = (f"device={device}", "+device.options.macs_per_ms=3e5", "budget=latency_ms")
    assert search(*given, "hydra.run.dir=on") == 0
    assert RunRecord.read(Path("on")).device["name"] == device


def test_agent_named_by_its_file_is_told_how_it_is_named(capsys: Output) -> None:
    assert search("agent=docs/examples/hill_climb.py:HillClimb") == 2
    said = capsys.readouterr().err
    assert "takes the class, package.module:Class: agent=docs.examples.hill_climb:Hill" in said


def test_setting_of_a_class_of_ones_own_needs_a_plus(capsys: Output) -> None:
    assert search("agent=docs.examples.hill_climb:HillClimb", "agent.noise=0.1") == 2
    said = capsys.readouterr().err
    assert "A setting of a class of yours is added by a plus: +agent.noise" in said


def test_class_named_with_a_dot_is_told_of_the_colon(capsys: Output) -> None:
    assert search("agent=docs.examples.hill_climb.HillClimb") == 2
    assert "is named package.module:Name, with a colon" in capsys.readouterr().err


def test_next_commands_name_code_again_and_apply_a_policy_to_another_network(
    searched: Path,
) -> None:
    shown = next_commands(RunRecord.read(searched), Path("/a place/run"), has_policy=True)
    assert [line.partition("   ")[0] for line in shown.splitlines()[1:]] == [
        f"  amc export run='/a place/run' {NETWORK}",
        f"  amc finetune run='/a place/run' epochs=3 {NETWORK}",
        "  amc apply policy='/a place/run' network=<name>",
    ]
