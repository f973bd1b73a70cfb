from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from amc import api
from amc.cli.recipe import data_of
from amc.networks import build_network
from amc.recovery import training
from amc.recovery.training import TrainingResult, train
from amc.recovery.training_rate import RATES
from amc.report.finetuned import FinetunedRecord
from amc.study.artifact import RunRecord, read_strategy
from tests.cli import nets
from tests.cli.command import NETWORK, amc

Output = pytest.CaptureFixture[str]


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A finished search to fine-tune: strided from 32 pixels, so that an epoch is short."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


def finetune(run: Path, *arguments: str) -> int:
    given = any(argument.startswith("learning_rate=") for argument in arguments)
    rate = () if given else ("learning_rate=0.01",)
    return amc("finetune", f"run={run}", NETWORK, "epochs=1", *rate, *arguments)


def _change(run: Path, **changes: Any) -> None:
    document = json.loads((run / "run.json").read_text())
    for group, values in changes.items():
        document[group] = {**document[group], **values} if isinstance(values, dict) else values
    (run / "run.json").write_text(json.dumps(document))


def test_finetuning_writes_into_the_run_and_says_what_it_gained(run: Path, capsys: Output) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert finetune(run) == 0
    shown = capsys.readouterr().out
    assert "test accuracy: " in shown
    assert f"written to {run / 'finetune'}" in shown
    del before["report.html"]
    assert all((run / name).read_bytes() == content for name, content in before.items())
    names = {path.name for path in (run / "finetune").iterdir()}
    assert names >= {"best.safetensors", "training.safetensors", "compressed.safetensors"}
    tuned = FinetunedRecord.read(run / "finetune")
    assert tuned is not None
    said = f"test accuracy: {100 * tuned.before:.2f} % before, {100 * tuned.after:.2f} % after"
    assert said in shown
    assert "Fine-tuned</h2>" in (run / "report.html").read_text()
    assert any(name.startswith("events.out.tfevents.") for name in names)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["run"]


def test_finetuned_network_is_loaded_like_that_of_a_search(run: Path) -> None:
    assert finetune(run) == 0
    data = data_of(RunRecord.read(run).data)
    original = build_network("tests.cli.nets:tiny", num_classes=10, image_shape=data.image_shape)
    tuned = api.load_compressed(run / "finetune", original, data.image_shape)
    searched = api.load_compressed(run, original, data.image_shape)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for network in (tuned, searched)
    ]
    assert shapes[0] == shapes[1]
    assert read_strategy(run / "finetune") == read_strategy(run)


def test_a_learning_rate_is_found_and_told_where_none_is_given(run: Path, capsys: Output) -> None:
    assert finetune(run, "learning_rate=null") == 0
    said = capsys.readouterr().err.splitlines()
    (told,) = [line for line in said if line.startswith("learning_rate=")]
    found = float(told.removeprefix("learning_rate=").partition(":")[0])
    assert found in RATES
    assert finetune(run, f"learning_rate={found:g}") == 0  # it is the same training
    assert "nothing was left to train" in capsys.readouterr().out


def test_finished_finetuning_is_not_repeated_and_a_changed_setting_is_named(
    run: Path, capsys: Output
) -> None:
    assert finetune(run) == 0
    weights = (run / "finetune" / "compressed.safetensors").read_bytes()
    capsys.readouterr()
    assert finetune(run) == 0
    assert (run / "finetune" / "compressed.safetensors").read_bytes() == weights
    shown = capsys.readouterr().out
    assert "nothing was left to train: an earlier call did all epochs" in shown
    assert f"as ONNX: amc export run={run / 'finetune'} {NETWORK}\n" in shown
    assert finetune(run, "learning_rate=0.02") == 2
    said = capsys.readouterr().err
    assert "learning_rate was 0.01, now 0.02" in said
    assert "restart=true" in said
    assert "another folder" not in said
    assert finetune(run, "learning_rate=0.02", "restart=true") == 0


@pytest.mark.skipif(not distributed.is_available(), reason="PyTorch without its distributed")
def test_processes_of_torchrun_train_together_and_the_first_tells(run: Path) -> None:
    command = Path(sys.executable).with_name("amc")
    if not command.exists():
        pytest.skip("the command amc is not installed beside Python")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--no-python", str(command), "finetune"),
            *(f"run={run}", NETWORK, "epochs=1", "learning_rate=0.01"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("test accuracy: ") == 1
    assert ran.stderr.count("fine-tuning: ") > 0
    names = [path.name for path in (run / "finetune").iterdir()]
    assert {"best.safetensors", "compressed.safetensors"} <= set(names)
    assert sum(name.startswith("events.out.tfevents.") for name in names) == 1


def test_images_are_transformed_as_asked_and_the_table_says_so(run: Path, capsys: Output) -> None:
    assert finetune(run, "augment=[]") == 0
    assert "augmented" not in capsys.readouterr().out
    assert finetune(run, "augment=[flip]", "restart=true") == 0
    assert "augmented" in capsys.readouterr().out
    assert finetune(run, "augment=[turn]", "restart=true") == 2
    assert "Unknown augmentation ['turn']; known are ['flip', 'crop']." in capsys.readouterr().err


def test_ctrl_c_ends_the_training_and_the_same_command_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*arguments: Any, on_epoch: Callable[..., None], **named: Any) -> TrainingResult:
        def ended(epoch: training.EpochRecord) -> None:
            on_epoch(epoch)
            signal.raise_signal(signal.SIGINT)

        return train(*arguments, on_epoch=ended, **named)

    with monkeypatch.context() as patch:
        patch.setattr("amc.study.finetuning.train", interrupted)
        assert finetune(run, "epochs=2") == 0
    assert "ended early by Ctrl-C: run the same command again" in capsys.readouterr().out
    assert finetune(run, "epochs=2") == 0
    shown = capsys.readouterr().out
    assert "ended early" not in shown
    assert "│ 2 " in shown


@pytest.mark.parametrize(("best", "is_said"), [(0, True), (1, False)])
def test_training_in_which_no_epoch_was_better_says_that_the_weights_are_kept(
    best: int, is_said: bool, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def judged(*arguments: Any, **named: Any) -> TrainingResult:
        return replace(train(*arguments, **named), best_epoch=best)

    monkeypatch.setattr("amc.study.finetuning.train", judged)
    assert finetune(run) == 0
    said = "no epoch did better on the search split than the network had: its weights are kept"
    shown = capsys.readouterr().out
    assert (said in shown) == is_said
    assert ("Try another learning_rate or more epochs (with restart=true)." in shown) == is_said
    assert finetune(run, "distill.at=1", "restart=true") == 0
    advice = "Try smaller weights distill.at and distill.sp, another learning_rate"
    assert (advice in capsys.readouterr().out) == is_said
    assert finetune(run, "augment=[flip]", "restart=true") == 0
    shown = capsys.readouterr().out
    assert (
        "or augment=[] where flipped or shifted images are of another class" in shown
    ) == is_said


def test_interrupted_restart_goes_on_without_restarting(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def stopped(*arguments: Any, **named: Any) -> TrainingResult:
        return replace(train(*arguments, **named), complete=False)

    monkeypatch.setattr("amc.study.finetuning.train", stopped)
    assert finetune(run, "restart=true") == 0
    said = "run the same command without restart=true to go on"
    assert f"ended early by Ctrl-C: {said}" in capsys.readouterr().out


def test_what_was_exported_before_a_training_is_said_to_be_old(run: Path, capsys: Output) -> None:
    exported = run / "finetune" / "export"
    exported.mkdir(parents=True)
    said = f"{exported} holds what was exported before this training: export again"
    assert finetune(run) == 0
    assert said in capsys.readouterr().out
    assert finetune(run) == 0  # nothing trained, nothing old
    assert said not in capsys.readouterr().out


# -- a run folder from someone else ----------------------------------------------------------


def test_function_that_only_a_file_names_is_not_called(run: Path, capsys: Output) -> None:
    nets.CALLS.clear()
    _change(run, network={"name": "tests.cli.nets:traced"})
    assert amc("finetune", f"run={run}", "epochs=1") == 2
    said = capsys.readouterr().err
    assert nets.CALLS == []
    assert "amc calls no code that only a file names" in said
    assert "add network=tests.cli.nets:traced" in said


def test_function_is_called_once_the_user_names_it_too(run: Path) -> None:
    nets.CALLS.clear()
    _change(run, network={"name": "tests.cli.nets:traced"})
    assert amc("finetune", f"run={run}", "epochs=1", "network=tests.cli.nets:traced") == 0
    assert nets.CALLS == ["traced"]


def test_objective_that_only_a_file_names_is_not_made(run: Path, capsys: Output) -> None:
    document = json.loads((run / "run.json").read_text())
    named = "amc.objectives.classification:Classification"
    document["settings"]["objective"] = named
    (run / "run.json").write_text(json.dumps(document))
    assert finetune(run) == 2
    assert f"if it is yours, add objective={named}" in capsys.readouterr().err
    assert finetune(run, f"objective={named}") == 0
    assert f"as ONNX: amc export run={run / 'finetune'}" in (shown := capsys.readouterr().out)
    assert f"objective={named}" in shown


def test_another_network_than_that_of_the_run_is_refused(run: Path, capsys: Output) -> None:
    assert finetune(run, "network=resnet20") == 2
    said = "The run is of network 'tests.cli.nets:tiny', not 'resnet20'."
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"name": ["x"]}}, "network.name must be text, got ['x']"),
        ({"network": {"code": "x"}}, "Unknown option network.code"),
        ({"data": {"name": {}}}, "data.name must be text, got {}"),
        ({"data": {"root": 3}}, "data.root must be text, or null, got 3"),
        ({"data": {"code": "x"}}, "Unknown data options ['code']"),
        ({"network": "tiny"}, "'network' must be an object"),
    ],
)
def test_run_record_with_other_content_is_refused(
    changes: dict[str, Any], said: str, run: Path, capsys: Output
) -> None:
    _change(run, **changes)
    assert finetune(run) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_weights_of_another_network_are_refused(run: Path, capsys: Output) -> None:
    _change(run, network={"name": "tests.cli.nets:deeper"})
    assert finetune(run, "network=tests.cli.nets:deeper") == 2
    assert "error: " in capsys.readouterr().err


def test_missing_run_folder_is_named_and_not_made(capsys: Output) -> None:
    assert amc("finetune", "run=no/run") == 2
    assert "error: Run folder not found: no/run." in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("learning_rate=fast", "learning_rate must be a number, or null, got 'fast'"),
        ("learning_rate=0", "learning_rate must be above 0, or none, got 0"),
        ("distillation_weight=2", "distillation_weight must be in [0, 1], got 2"),
        ("distill.at=much", "distill.at must be a number, got 'much'"),
        ("distill.kd=0", "The weights of distill must be numbers from 0, at least one above"),
        ("learned_steps=4", "learned_steps must be true or false, got 4"),
        ("gradual=2", "gradual must be in [0, 1], got 2"),
        ("average=1", "average must be in [0, 1), got 1"),
        ("batch_norm_images=-1", "batch_norm_images must be a whole number from 0, got -1"),
        ("teacher=3", "teacher must be text, or a list of texts, or null, got 3"),
        ("teacher_checkpoint=3", "teacher_checkpoint must be text, or a list of texts and nulls"),
        ("teacher=resnt20", "Unknown network 'resnt20'. Did you mean resnet20"),
        ("teacher=resnet20 teacher_checkpoint=no.pt", "Checkpoint not found: no.pt"),
        (
            "teacher=[original,resnet20] teacher_checkpoint=a.pt",
            "teacher_checkpoint must hold as many files as teacher has networks, 2, got 1",
        ),
    ],
)
def test_a_mistaken_option_is_said_in_one_message(
    argument: str, said: str, run: Path, capsys: Output
) -> None:
    assert finetune(run, *argument.split()) == 2
    assert said in capsys.readouterr().err


def test_other_networks_teach_with_the_original_by_several_losses(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[Any] = []

    def taught(*arguments: Any, teacher: Any, **named: Any) -> TrainingResult:
        teachers.extend(teacher.members)
        return train(*arguments, teacher=teacher, **named)

    monkeypatch.setattr("amc.study.finetuning.train", taught)
    other = build_network("tests.cli.nets:deeper", num_classes=10, image_shape=(3, 32, 32))
    torch.save(other.state_dict(), "other.pt")
    options = ["teacher=[original,tests.cli.nets:deeper]", "teacher_checkpoint=[null,other.pt]"]
    assert finetune(run, *options, "distill={kd: 0.5, sp: 100}", "average=0.9") == 0
    assert [type(teacher).__name__ for teacher in teachers] == ["Tiny", "Tiny"]
    assert torch.equal(teachers[1].linear.weight, other.get_submodule("linear").weight)


def test_checkpoint_of_the_original_may_be_given_anew(run: Path, capsys: Output) -> None:
    assert finetune(run, "checkpoint=none.pt") == 2
    assert "Checkpoint not found: none.pt" in capsys.readouterr().err
    original = build_network("tests.cli.nets:tiny", num_classes=10, image_shape=(3, 32, 32))
    torch.save(original.state_dict(), "original.pt")
    assert finetune(run, "checkpoint=original.pt") == 0
