"""Options are checked before anything is read, measured or trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.cli import recipe
from tests.cli.command import NETWORK, amc

Output = pytest.CaptureFixture[str]

SEARCH = ("network=tests.cli.nets:tiny", "device=roofline_phone")


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where data would be read, the test ends."""
    monkeypatch.setattr(recipe, "data_of", lambda _: pytest.fail("data were read"))


def _refused(arguments: tuple[str, ...], said: str, capsys: Output) -> None:
    assert amc(*arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("command", ["search", "compare"])
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("network=resnet21", "Unknown network 'resnet21'. Did you mean "),
        ("network=tests.cli.nets:none", "has no function 'none'"),
        ("network.checkpoint=none.pt", "none.pt. Check network.checkpoint."),
        ("network.checkpoint=none.zip", "must be one of .safetensors, .pt, .pth, got '.zip'"),
        ("+network.options.image_shape=3", "network.options must not hold image_shape"),
        ("env.min_preserve_ratio=2", "env.min_preserve_ratio must be in (0, 1], got 2"),
        ("env.weight_bits=[9]", "env.weight_bits must be a list of widths"),
        ("env.weight_bits=[4]", "leave no pair that the device prices"),
        ("decisions=[palette]", "list of channels, bits, sparsity, sparsity_magnitude, "),
        ("recovery.images=1", "recovery.images must be at least 2, got 1"),
        ("recovery.importance=size", "recovery.importance must be one of surgeon, magnitude, l1, "),
        ("objective=reward", "objective must be one of auto, classification, "),
    ],
)
def test_a_search_reads_no_data_before_its_options_are_checked(
    command: str, argument: str, said: str, capsys: Output
) -> None:
    _refused((command, *SEARCH, argument), said, capsys)


def test_a_network_without_weights_is_refused_before_its_data_are_read(capsys: Output) -> None:
    said = "Network 'resnet20' has no weights for data 'cifar10'. Give a trained checkpoint"
    _refused(("search", "data=cifar10", "device=roofline_phone"), said, capsys)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("learning_rate=-1", "learning_rate must be above 0, or none, got -1"),
        ("temperature=0", "temperature must be above 0, got 0"),
        ("augment=[turn]", "Unknown augmentation ['turn']"),
        ("checkpoint=none.pt", "none.pt. Check network.checkpoint."),
        ("network=resnet20", "The run is of network 'tests.cli.nets:tiny', not 'resnet20'"),
        ("objective=my:Task", "The run is of objective 'auto', not 'my:Task'."),
    ],
)
def test_a_training_reads_no_data_before_its_options_are_checked(
    argument: str, said: str, searched: Path, capsys: Output
) -> None:
    _refused(("finetune", f"run={searched}", NETWORK, argument), said, capsys)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("opset=99", "opset must be 13 to 20, got 99"),
        ("objective=my:Task", "The run is of objective 'auto', not 'my:Task'."),
        ("checkpoint=none.pt", "none.pt. Check network.checkpoint."),
    ],
)
def test_an_export_reads_no_data_before_its_options_are_checked(
    argument: str, said: str, searched: Path, capsys: Output
) -> None:
    _refused(("export", f"run={searched}", NETWORK, argument), said, capsys)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("network=resnet21", "Unknown network 'resnet21'"),
        ("network.checkpoint=none.pt", "none.pt. Check network.checkpoint."),
        ("+env.min_preserve_ratio=2", "env.min_preserve_ratio must be in (0, 1], got 2"),
        ("+env.weight_bits=[4]", "leave no pair that the device prices"),
        ("optimize=energy", "optimize must be one of reward"),
        ("objective=energy", "objective must be one of auto, classification, "),
    ],
)
def test_a_policy_is_applied_to_no_data_before_its_options_are_checked(
    argument: str, said: str, searched: Path, capsys: Output
) -> None:
    _refused(("apply", f"policy={searched}", argument), said, capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("network=resnet21",), "Unknown network 'resnet21'"),
        (("env.min_preserve_ratio=2",), "env.min_preserve_ratio must be in (0, 1], got 2"),
        (("env.weight_bits=[4]",), "leave no pair that the device prices"),
        (("todo=list.csv", "todo_covers=some"), "todo_covers must be one of"),
        (("todo=there.csv",), "todo=there.csv is there already"),
    ],
)
def test_a_profile_reads_no_data_before_its_options_are_checked(
    arguments: tuple[str, ...], said: str, capsys: Output
) -> None:
    Path("there.csv").touch()
    _refused(("profile", *arguments), said, capsys)
