"""Images with a mask each: which belong together, what is cut out, what bytes mean."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data import build_data
from amc.data.masks import NO_CLASS
from amc.errors import DataError


def write_pair(root: Path, name: str, number: int, mask: np.ndarray | None = None) -> None:
    """An image whose red is its number, and a mask of its size, all of class number % 3."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    mask = np.full((4, 6), number % 3, np.uint8) if mask is None else mask
    height, width = mask.shape[:2]
    Image.new("RGB", (width, height), (number, 0, 0)).save(root / "images" / f"{name}.png")
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 to train on, 5 for search, 3 to test with."""
    first = 0
    for part, count in (("train", 20), ("val", 5), ("test", 3)):
        for number in range(first, first + count):
            write_pair(tmp_path / part, f"{number:03}", number)
        first += count
    return tmp_path


def reds(split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_each_image_has_its_mask_and_val_is_searched_on(root):
    data = build_data("mask_folder", root=root)
    assert data.image_shape == (3, 4, 6)
    assert (data.num_classes, data.labels_in_words) == (0, "labels of shape (4, 6)")
    assert (data.mean[0], data.augment) == (0.485, ("flip",))
    assert reds(data.search) == [20, 21, 22, 23, 24]
    assert reds(data.test) == [25, 26, 27]
    assert reds(data.train) == reds(data.calibration) == list(range(20))
    for split in (data.train, data.search, data.test):
        assert split.labels.dtype == torch.uint8
        assert split.labels.shape == (len(split), 4, 6)
        assert split.labels[:, 1, 1].tolist() == [number % 3 for number in reds(split)]


def test_fewer_of_val_are_searched_on_where_asked_for_and_the_others_are_no_train(root):
    data = build_data("mask_folder", root=root, search=2)
    assert len(data.search) == 2
    assert set(reds(data.search)) < {20, 21, 22, 23, 24}
    assert reds(data.train) == list(range(20))
    with pytest.raises(DataError, match=r"data\.search=6 cannot be had.*5 images for search"):
        build_data("mask_folder", root=root, search=6)
    with pytest.raises(DataError, match=r"data\.search_every=2 cannot be had.*5 images"):
        build_data("mask_folder", root=root, search_every=2)


def test_without_train_and_test_folders_a_fifth_is_cut_off(tmp_path, caplog):
    for number in range(20):
        write_pair(tmp_path, f"{number:03}", number)
    data = build_data("mask_folder", root=tmp_path)
    assert "no test folder: 4 of its 20 images" in caplog.text
    found = [*reds(data.train), *reds(data.search), *reds(data.test)]
    assert sorted(found) == list(range(20))
    assert data.test.labels[:, 0, 0].tolist() == [number % 3 for number in reds(data.test)]


def test_val_is_the_test_where_there_is_none(root):
    for part in ("images", "masks"):
        for path in (root / "test" / part).iterdir():
            path.unlink()
        (root / "test" / part).rmdir()
    (root / "test").rmdir()
    assert reds(build_data("mask_folder", root=root).test) == [20, 21, 22, 23, 24]


def test_the_middle_rows_are_cut_out_without_resampling(tmp_path):
    draw = np.random.default_rng(0)
    pixels = draw.integers(256, size=(180, 240, 3), dtype=np.uint8)
    mask = draw.integers(11, size=(180, 240), dtype=np.uint8)
    for number in range(3):
        write_pair(tmp_path, str(number), 0, mask)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    data = build_data("mask_folder", root=tmp_path, image_size=[176, 240])
    assert data.image_shape == (3, 176, 240)
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), pixels[2:178])
    assert np.array_equal(data.test.labels[0].numpy(), mask[2:178])


def test_masks_are_resized_to_the_nearest_pixel(tmp_path):
    mask = np.kron(np.array([[0, 2], [1, 3]], np.uint8), np.ones((4, 4), np.uint8))  # 8 x 8
    for number in range(3):
        write_pair(tmp_path, str(number), 0, mask)
    data = build_data("mask_folder", root=tmp_path, image_size=2)
    assert data.test.labels[0].tolist() == [[0, 2], [1, 3]]


def test_ignored_bytes_are_of_no_class(tmp_path):
    mask = np.array([[0, 1, 7], [8, 255, 1]], np.uint8)
    for number in range(3):
        write_pair(tmp_path, str(number), 0, mask)
    labels = build_data("mask_folder", root=tmp_path, ignored=[7, 8]).test.labels[0]
    assert labels.tolist() == [[0, 1, NO_CLASS], [NO_CLASS, NO_CLASS, 1]]


def test_mask_values_number_the_classes(tmp_path):
    mask = np.array([[10, 20, 30], [255, 9, 10]], np.uint8)
    for number in range(3):
        write_pair(tmp_path, str(number), 0, mask)
    options = {"root": tmp_path, "mask_values": [20, 10, 30]}
    labels = build_data("mask_folder", **options, ignored=9).test.labels[0]
    assert labels.tolist() == [[1, 0, 2], [NO_CLASS, NO_CLASS, 1]]
    with pytest.raises(DataError, match=r"holds 9, which is neither in data\.mask_values \[20, "):
        build_data("mask_folder", **options).test  # noqa: B018


def test_whether_255_is_a_class_is_asked(tmp_path):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    for number in range(3):
        write_pair(tmp_path, str(number), 0, mask)
    with pytest.raises(DataError, match=r"0 and 255 alone.*mask_values=\[0,255\].*ignored=255"):
        build_data("mask_folder", root=tmp_path)
    labels = build_data("mask_folder", root=tmp_path, mask_values=[0, 255]).test.labels[0]
    assert labels.tolist() == [[0, 1], [1, 0]]


def test_palettes_and_bits_are_read_as_numbers(tmp_path):
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    for number in range(3):
        write_pair(tmp_path, str(number), 0, mask)
    coloured = Image.fromarray(mask, "P")
    coloured.putpalette([255, 0, 0, 0, 0, 255])
    coloured.save(tmp_path / "masks" / "0.png")
    Image.fromarray(mask.astype(bool)).save(tmp_path / "masks" / "1.png")
    data = build_data("mask_folder", root=tmp_path)
    for split in (data.train, data.search, data.test):
        assert split.labels[0].tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"000\.png is 5x4 pixels, and its image 6x4"),
        (np.zeros((4, 6, 3), np.uint8), r"000\.png is no mask \(mode RGB\): expected one byte"),
        (np.zeros((4, 6), np.uint16), r"000\.png is no mask \(mode I;16\)"),
    ],
)
def test_what_is_no_mask_is_named(root, mask, message):
    Image.fromarray(mask).save(root / "train" / "masks" / "000.png")
    with pytest.raises(DataError, match=message):
        build_data("mask_folder", root=root)


def test_five_of_many_files_that_lack_another_are_named_and_all_counted(root):
    for number in range(3, 10):
        (root / "train" / "masks" / f"{number:03}.png").unlink()
    named = r".*/003\.png, .*/004\.png, .*/005\.png, .*/006\.png, .*/007\.png and 2 more "
    with pytest.raises(DataError, match=named + r"\(7 files\) have no mask: expected .*003\.png"):
        build_data("mask_folder", root=root)
    for number in range(3, 10):
        (root / "train" / "images" / f"{number:03}.png").unlink()
    for number in (0, 1):
        (root / "train" / "images" / f"{number:03}.png").unlink()
    with pytest.raises(DataError, match=r"/000\.png, .*/001\.png \(2 files\) have no image in"):
        build_data("mask_folder", root=root)


def test_masks_of_the_test_are_known_without_its_images(root):
    write_pair(root / "test", "027", 27, np.full((4, 6), 9, np.uint8))
    data = build_data("mask_folder", root=root)
    assert data.test_labels[:, 0, 0].tolist() == [1, 2, 9]
    (root / "test" / "images" / "027.png").unlink()
    assert data.test_labels[:, 3, 5].tolist() == [1, 2, 9]


def test_images_without_masks_and_masks_without_images_are_named(root):
    (root / "val" / "masks" / "021.png").rename(root / "val" / "masks" / "other.png")
    with pytest.raises(DataError, match=r"021\.png has no mask: expected .*masks/021\.png"):
        build_data("mask_folder", root=root)
    (root / "val" / "images" / "021.png").unlink()
    with pytest.raises(DataError, match=r"masks/other\.png has no image in .*val/images"):
        build_data("mask_folder", root=root)
    (root / "val" / "images" / "020.jpg").touch()
    with pytest.raises(DataError, match=r"020\.jpg and .*020\.png have the same name"):
        build_data("mask_folder", root=root)


def test_other_folders_are_told_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"needs data\.root: a folder with images/\* and masks/\*"):
        build_data("mask_folder")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no folder 'masks'.*data=image_folder"):
        build_data("mask_folder", root=tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"images holds no images"):
        build_data("mask_folder", root=tmp_path)
    write_pair(tmp_path, "a", 0)
    with pytest.raises(DataError, match=r"no classes\. For a class of every pixel: data=mask_fol"):
        build_data("image_folder", root=tmp_path)


def test_fingerprint_follows_masks_and_what_their_bytes_mean(root):
    original = build_data("mask_folder", root=root).fingerprint()
    assert build_data("mask_folder", root=root, ignored=2).fingerprint() != original
    mask = np.random.default_rng(0).integers(3, size=(4, 6), dtype=np.uint8)
    write_pair(root / "test", "025", 25, mask)
    assert build_data("mask_folder", root=root).fingerprint() != original
