"""The commands on images with masks, and on data of a function of the user's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.command import NETWORK, REPAIR, amc

Output = pytest.CaptureFixture[str]
DENSE = "network=tests.cli.nets:dense"
SEARCH = (
    "device=roofline_phone",
    "budget=macs",
    "budget.fraction=0.6",
    "agent=random",
    "search.evaluations=2",
    "search.final_candidates=1",
    "search.store=false",
    "hydra.run.dir=run",
    *REPAIR,
)
DATA = """
import torch

def make():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.arange(60) % 10
    return {"train": (images[:40], labels[:40]), "test": (images[40:], labels[40:])}
"""


def _folder(root: Path) -> None:
    """Noise, whose mask says where red is more than green; 40 to train on, 12 to test with."""
    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 40), ("test", 12)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=draw)
            mask = (pixels[..., 0] > pixels[..., 1]).to(torch.uint8) * 100
            mask[0] = 7
            Image.fromarray(pixels.numpy()).save(root / part / "images" / f"{number}.png")
            Image.fromarray(mask.numpy()).save(root / part / "masks" / f"{number}.png")


@pytest.mark.usefixtures("quick")
def test_a_segmentation_network_goes_through_search_finetune_and_export(capsys: Output) -> None:
    _folder(Path("photos"))
    given = (DENSE, "data=mask_folder", "data.root=photos")
    read = ("data.mask_values=[0,100]", "data.ignored=7", "objective=segmentation")
    assert amc("search", *given, *read, *SEARCH) == 0
    shown = capsys.readouterr()
    assert "IoU %" in shown.out
    assert "acc. %" not in shown.out
    with Path("run/comparison.csv").open() as file:
        original, *_ = csv.DictReader(file)
    assert 0 < float(original["test_mean_iou"]) < 1
    assert amc("finetune", "run=run", DENSE, "epochs=1", "batch_size=16") == 0
    shown = capsys.readouterr()
    assert "search mean_iou" in shown.out
    assert "test mean_iou: " in shown.out
    assert amc("export", "run=run/finetune", DENSE) == 0
    assert "mean_iou" in capsys.readouterr().out
    report = json.loads(Path("run/finetune/export/export.json").read_text())
    assert "mean_iou" in json.dumps(report)


@pytest.mark.usefixtures("quick")
def test_data_of_a_function_are_named_again_by_whoever_goes_on(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("own_data.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    again, folder = "data=own_data:make", "run=run"
    assert amc("search", NETWORK, "data=own_data.py:make", *SEARCH) == 2
    assert "Data of yours are a function, package.module:function: data=own_data:make" in (
        capsys.readouterr().err
    )
    assert amc("search", NETWORK, again, "data.ignored=3", *SEARCH) == 2
    capsys.readouterr()
    assert amc("search", NETWORK, again, "data.mean=0.4", *SEARCH) == 0
    assert amc("finetune", folder, NETWORK, "epochs=1") == 2
    said = capsys.readouterr().err
    assert "its data is the code 'own_data:make'" in said
    assert "add data=own_data:make" in said
    assert amc("finetune", folder, NETWORK, "data=digits", "epochs=1") == 2
    assert "The run is of data 'own_data:make', not 'digits'" in capsys.readouterr().err
    assert amc("finetune", folder, NETWORK, again, "data.mean=0.5", "epochs=1") == 2
    assert "have their options already: leave out data.mean" in capsys.readouterr().err
    assert amc("finetune", folder, NETWORK, again, "epochs=1", "batch_size=16") == 0
    assert f"amc export run=run/finetune {NETWORK} {again}" in capsys.readouterr().out


def test_help_tells_of_data_of_ones_own(capsys: Output) -> None:
    assert amc("search", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cifar10, custom, digits, image_folder, mask_folder, mnist" in said
    assert "mask_folder: data.root=<folder of images/* and masks/*>" in said
