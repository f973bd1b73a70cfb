"""A network of timm's, by name, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.command import REPAIR, amc


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of three classes, of more than one size."""
    random = np.random.default_rng(0)
    for number in range(30):
        image = random.integers(0, 120, (32, 32 + 8 * (number % 2), 3), dtype=np.uint8)
        image[8:24, 8:24, number % 3] += 100
        folder = tmp_path / "photos" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.usefixtures("quick")
def test_network_of_timms_is_searched_trained_and_exported(photos: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    small = timm.create_model("resnet10t", num_classes=3, channels=[8, 8, 12, 16], stem_width=4)
    torch.save(small.state_dict(), "weights.pt")
    run = tmp_path / "run"
    code = amc(
        *("search", "network=timm/resnet10t", "network.checkpoint=weights.pt"),
        *("+network.options.channels=[8,8,12,16]", "+network.options.stem_width=4"),
        *("data=image_folder", f"data.root={photos}", "data.image_size=32", "budget=macs"),
        *("env.channel_step=1", "device=roofline_phone", "search.evaluations=2"),
        *("search.final_candidates=1", f"hydra.run.dir={run}", *REPAIR),
    )
    assert code == 0
    data = json.loads((run / "run.json").read_text())["data"]
    config = timm.get_pretrained_cfg("resnet10t")
    assert (data["mean"], data["std"]) == ([*config.mean], [*config.std])
    assert amc("finetune", f"run={run}", "epochs=1", "batch_size=8") == 0
    assert amc("export", f"run={run / 'finetune'}") == 0
    exported = json.loads((run / "finetune/export/export.json").read_text())
    assert exported["parity"]["same"] == 1


def test_mistaken_name_of_timms_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    assert amc("search", "network=timm/tset_resnet") == 2
    shown = capsys.readouterr().err
    assert "error: timm has no network 'timm/tset_resnet'. Did you mean timm/test_resnet" in shown


def test_file_in_a_folder_called_timm_is_still_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert amc("search", "network=timm/mine.py") == 2
    assert "network=timm/mine.py names a file" in capsys.readouterr().err
