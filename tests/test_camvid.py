"""The segmentation network that a benchmark compresses, and the picture that it draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from amc.objectives import Segmentation
from amc.utils.files import write_tensors
from benchmarks import camvid

NETWORK = """
from torch import nn
def Net():
    return nn.Conv2d(3, 11, 1)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(256, size=(180, 240, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "images" / f"{number}.jpg")
            mask = draw.integers(12, size=(180, 240), dtype=np.uint8)
            Image.fromarray(mask).save(tmp_path / part / "masks" / f"{number}.png")
    return tmp_path


def test_images_are_what_the_network_takes(root: Path) -> None:
    data = camvid.camvid(root)
    assert data.image_shape == (3, 176, 240)
    assert (len(data.train), len(data.search), len(data.test)) == (3, 2, 2)
    mask = np.asarray(Image.open(root / "test" / "masks" / "1.png"))[2:178]
    labels = data.test.labels
    assert labels is not None
    assert np.array_equal(labels[1].numpy(), np.where(mask == 11, 255, mask))


def test_network_of_a_file_has_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    weights = nn.Conv2d(3, 11, 1).state_dict()
    write_tensors(tmp_path / "w.safetensors", weights)
    (tmp_path / "net.py").write_text(NETWORK)
    network = camvid.network_in(f"{tmp_path / 'net.py'}:Net", tmp_path / "w.safetensors")
    assert torch.equal(network.state_dict()["weight"], weights["weight"])
    with pytest.raises(SystemExit, match=r"must be file\.py:name, got 'net'"):
        camvid.network_in("net", tmp_path / "w.safetensors")


def test_differences_are_red_and_pixels_of_no_class_grey() -> None:
    before, after = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 5, 2]]])
    drawn = camvid.differences(before, after, torch.tensor([[[False, True, True]]]))
    assert drawn[0, 0].tolist() == [[255] * 3, [220, 0, 0], [200] * 3]
    assert camvid.coloured(torch.tensor([[[3, 255]]]))[0, 0].tolist() == [[128, 64, 128], [0] * 3]


def test_picture_is_drawn(root: Path) -> None:
    networks = [nn.Conv2d(3, 11, 1) for _ in range(2)]
    camvid.picture(root / "made" / "p.png", camvid.camvid(root), Segmentation(), networks, 2)
    with Image.open(root / "made" / "p.png") as drawn:
        assert drawn.width > drawn.height > 200
