"""The commands on images without labels, and with labels of other classes than the network's."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from amc.networks import build_network
from tests.cli.command import NETWORK, REPAIR, amc

Output = pytest.CaptureFixture[str]
SEARCH = (
    "device=roofline_phone",
    "budget=macs",
    "budget.fraction=0.6",
    "agent=random",
    "search.evaluations=2",
    "search.final_candidates=1",
    "data.image_size=8",
    "search.store=false",
    "hydra.run.dir=run",
    *REPAIR,
)


def _images(root: Path, names: list[str]) -> None:
    """Noise, in files of these names; enough for every split."""
    draw = torch.Generator().manual_seed(0)
    for name in names:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=draw)
        Image.fromarray(pixels.numpy()).save(path)


@pytest.mark.usefixtures("quick")
def test_images_without_class_folders_are_searched_and_fine_tuned(capsys: Output) -> None:
    _images(Path("photos"), [str(number) for number in range(60)])
    given = (NETWORK, "data=image_folder", "data.root=photos")
    assert amc("search", *given, "reward=accuracy", *SEARCH) == 2
    assert "reward=accuracy needs labels" in capsys.readouterr().err
    assert amc("search", *given, *SEARCH) == 0
    shown = capsys.readouterr()
    assert "agreement" in shown.out
    assert "acc. %" not in shown.out
    assert "is it trained" not in shown.err
    with Path("run/comparison.csv").open() as file:
        assert {row["test_accuracy"] for row in csv.DictReader(file)} == {""}
    tune = ("finetune", "run=run", NETWORK, "epochs=1", "batch_size=16")
    assert amc(*tune) == 0
    assert "test agreement: -" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_network_of_another_number_of_outputs_than_classes_is_searched(capsys: Output) -> None:
    _images(Path("photos"), [f"{kind}/{number}" for kind in "abc" for number in range(20)])
    wide = build_network("lenet_300_100", num_classes=100, image_shape=(3, 8, 8))
    torch.save(wide.state_dict(), "weights.pt")
    given = ("network=lenet_300_100", "data=image_folder", "data.root=photos")
    assert amc("search", *given, "network.checkpoint=weights.pt", *SEARCH) == 0
    shown = capsys.readouterr()
    assert "they are of 3 classes, and the network has 100 outputs" in shown.out + shown.err
    assert "acc. %" not in shown.out


def test_network_of_amcs_own_must_be_told_its_outputs_where_nothing_counts_them(
    capsys: Output,
) -> None:
    _images(Path("photos"), [str(number) for number in range(20)])
    given = ("network=resnet20", "data=image_folder", "data.root=photos")
    assert amc("search", *given, "device=roofline_phone") == 2
    assert "has no weights for data 'image_folder'" in capsys.readouterr().err
    assert amc("profile", *given, "device=torch_cpu", "todo=list.csv") == 2
    assert "must be told its number of outputs" in capsys.readouterr().err


def test_options_of_the_data_are_checked_before_anything_is_loaded(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        pytest.fail(f"{name} was imported")

    patched = SimpleNamespace(import_module=load)
    monkeypatch.setattr(sys.modules["amc.cli.main"], "importlib", patched)
    assert amc("search", NETWORK, "data.mean=[0.1,0.2]") == 2
    assert "data.mean must hold 1 number or 3 (one per channel)" in capsys.readouterr().err
