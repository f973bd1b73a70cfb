from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from amc.data import DataOptions, build_data
from amc.data.build import DATA_SETS
from amc.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return build_data("digits")


def test_digits_take_every_network(digits):
    assert digits.image_shape == (3, 32, 32)
    assert digits.num_classes == 10
    for split in (digits.train, digits.calibration, digits.search, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert torch.equal(split.images[:, 0], split.images[:, 2])


def test_digits_use_all_1797_images_once(digits):
    sizes = [len(digits.train), len(digits.calibration), len(digits.search), len(digits.test)]
    test = 1797 // 5
    left = 1797 - test
    assert sizes == [left - left // 10 - left // 5, left // 10, left // 5, test]


def test_digits_span_the_range_of_pixels(digits):
    assert int(digits.train.images.min()) == 0
    assert int(digits.train.images.max()) == 255
    assert (digits.mean, digits.std) == ((0.5,) * 3, (0.5,) * 3)


def test_digits_are_equal_for_equal_seeds(digits):
    again, other = build_data("digits"), build_data("digits", seed=1)
    assert again.fingerprint() == digits.fingerprint() != other.fingerprint()
    assert torch.equal(again.search.images, digits.search.images)
    assert len(other.search) == len(digits.search)
    assert not torch.equal(other.search.images, digits.search.images)


def test_options_override_the_defaults_of_a_data_set():
    data = build_data("digits", image_size=8, channels=1, mean=[0.25], augment=["crop"])
    assert data.image_shape == (1, 8, 8)
    assert (data.mean, data.augment) == ((0.25,), ("crop",))


def test_unknown_data_set_lists_near_matches():
    with pytest.raises(DataError, match=r"'cifar'\. Did you mean cifar10\? Known are: digits"):
        build_data("cifar")


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST: magic number with the dimensions, the sizes, then bytes."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_mnist_reads_the_files_of_torchvision_and_test_only_when_needed(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 7)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.full((count, 28, 28), count))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    data = build_data("mnist", root=tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert data.num_classes == 10
    assert len(data.train) + len(data.search) == 60
    write_idx(raw / "t10k-labels-idx1-ubyte", np.full(7, 3))
    assert data.test.labels.tolist() == [3] * 7
    assert data.test.images.unique().tolist() == [7]


class FakeCifar:
    """What torchvision's CIFAR10 looks like: pixels (N, H, W, C), labels as a list."""

    classes = ("cat", "dog")

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        self.data = np.zeros((40, 32, 32, 3), np.uint8)
        self.data[..., 2] = 9
        self.targets = [0, 1] * 20


def test_cifar10_brings_channels_to_the_front(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    data = build_data("cifar10", root=tmp_path)
    assert data.image_shape == (3, 32, 32)
    assert data.test.images[:, 2].unique().tolist() == [9]
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.augment == ("flip", "crop")


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("cifar10", "CIFAR10")])
def test_failed_download_says_what_to_do(tmp_path, monkeypatch, name, kind):
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, kind, offline)
    with pytest.raises(DataError, match=rf"{kind} is not .*Connect.*data\.root.*image_folder"):
        build_data(name, root=tmp_path)


OF_FILES = {"image_folder": {"exif"}, "mask_folder": {"exif", "ignored", "mask_values"}}


@pytest.mark.parametrize("name", [*DATA_SETS, "custom"])
def test_config_has_exactly_the_options_of_the_data_set(name):
    path = Path(__file__).resolve().parents[2] / "conf" / "data" / f"{name}.yaml"
    assert path.read_text().startswith(f"# amc search data={name}")
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert config["name"] == ("???" if name == "custom" else name)
    options = {option.name for option in fields(DataOptions)} - {"exif", "ignored", "mask_values"}
    assert set(config) == {"name", "root", "seed", *options, *OF_FILES.get(name, ())}
