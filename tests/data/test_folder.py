import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data import build_data
from amc.errors import DataError


def write_image(path: Path, shade: int, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


def write_folder(root: Path, each: int = 20) -> Path:
    """Classes "b" and "a" in train and test; the red of an image is its number in its class."""
    for part, count in (("train", each), ("test", 3)):
        for name in ("b", "a"):
            for number in range(count):
                write_image(root / part / name / f"{number:03}.png", number)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def reds(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_classes_and_files_are_in_the_order_of_their_names(root):
    data = build_data("image_folder", root=root, search_every=10)
    assert data.class_names == ("a", "b")
    assert data.image_shape == (3, 4, 4)
    # sorted list: a/000 .. a/019, b/000 .. b/019; every tenth of it
    assert list(zip(data.search.labels.tolist(), reds(data.search.images), strict=True)) == [
        (0, 0),
        (0, 10),
        (1, 0),
        (1, 10),
    ]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert reds(data.test.images) == [0, 1, 2, 0, 1, 2]


def test_training_images_are_divided_without_overlap(root):
    data = build_data("image_folder", root=root, calibration=4)
    found = [
        pair
        for split in (data.train, data.calibration, data.search)
        for pair in zip(split.labels.tolist(), reds(split.images), strict=True)
    ]
    assert sorted(found) == [(label, number) for label in (0, 1) for number in range(20)]


def test_only_the_files_of_the_split_at_hand_are_decoded(root):
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"damaged")
    data = build_data("image_folder", root=root)
    assert len(data.train) > 0
    with pytest.raises(DataError, match=r"000\.png is no readable image"):
        data.test  # noqa: B018


def test_folder_without_a_test_part_gives_a_seeded_fifth_and_says_so(root, caplog):
    alone = build_data("image_folder", root=root / "train", seed=5, calibration=4)
    assert "no test folder: 8 of its 40 images, chosen with seed 5" in caplog.text
    again = build_data("image_folder", root=root / "train", seed=5)
    assert len(alone.test) == 8
    assert torch.equal(alone.test.images, again.test.images)
    assert alone.test.labels.tolist() == [0] * 4 + [1] * 4
    splits = (alone.train, alone.calibration, alone.search, alone.test)
    found = [
        pair
        for split in splits
        for pair in zip(split.labels.tolist(), reds(split.images), strict=True)
    ]
    assert len(set(found)) == len(found) == 40


def test_images_are_cropped_to_a_square_and_resized(tmp_path, caplog):
    caplog.set_level("INFO")
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 2:10] = 200  # the middle square, and what a filter sees around it
    for number in range(20):
        path = tmp_path / f"{'ab'[number % 2]}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    data = build_data("image_folder", root=tmp_path, image_size=2)
    assert data.image_shape == (3, 2, 2)
    assert "images of 12x4 pixels are brought to 2x2 (data.image_size)" in caplog.text
    assert data.test.images.unique().tolist() == [200]


def test_grey_images_have_one_channel_and_their_own_normalisation(root):
    data = build_data("image_folder", root=root, channels=1)
    assert data.image_shape == (1, 4, 4)
    assert (data.mean, data.std) == ((0.5,), (0.5,))
    # red counts 0.299 in grey: shades 0, 1, 2 are 0, 0, 1
    assert reds(data.test.images) == [0, 0, 1, 0, 0, 1]


def test_colour_images_are_normalised_like_imagenet(root):
    data = build_data("image_folder", root=root)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.229, 0.224, 0.225)


def test_damaged_image_is_named(root):
    path = root / "train" / "a" / "007.png"
    path.write_bytes(path.read_bytes()[:45])
    data = build_data("image_folder", root=root)
    with pytest.raises(DataError, match=r"a/007\.png is no readable image"):
        data.train, data.search, data.calibration  # noqa: B018


def test_image_of_another_size_is_named_with_both_sizes(root):
    write_image(root / "test" / "b" / "001.png", 0, size=(5, 4))
    data = build_data("image_folder", root=root)
    with pytest.raises(DataError, match=r"b/001\.png is 5x4 pixels, expected 4x4 like .*a/000"):
        data.test  # noqa: B018


def test_images_of_16_bits_are_refused(root):
    Image.fromarray(np.full((4, 4), 5000, np.uint16)).save(root / "test" / "a" / "000.png")
    data = build_data("image_folder", root=root)
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        data.test  # noqa: B018


def test_train_and_test_must_have_the_same_classes(root):
    (root / "test" / "b").rename(root / "test" / "c")
    with pytest.raises(DataError, match=r"only in .*train: b; only in .*test: c"):
        build_data("image_folder", root=root)


def test_empty_class_folder_is_named(root):
    (root / "train" / "c").mkdir()
    (root / "train" / "c" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"train/c holds no images"):
        build_data("image_folder", root=root)


def test_root_that_is_not_given_missing_or_without_classes_is_said(tmp_path):
    with pytest.raises(DataError, match=r"needs data\.root"):
        build_data("image_folder")
    with pytest.raises(DataError, match=r"not found: .*nowhere"):
        build_data("image_folder", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"No class folders in .*, and no images"):
        build_data("image_folder", root=tmp_path)


def test_images_in_folders_of_a_class_are_its_images(tmp_path):
    for number in range(12):
        write_image(tmp_path / "a" / f"{number:02}.png", number)
        write_image(tmp_path / "b" / "deep" / f"part{number % 2}" / f"{number:02}.png", number)
    (tmp_path / "b" / "deep" / "round").symlink_to(tmp_path / "b")  # leads back to where it is
    data = build_data("image_folder", root=tmp_path)
    assert data.class_names == ("a", "b")
    found = [
        pair
        for split in (data.train, data.search, data.test)
        for pair in zip(split.labels.tolist(), reds(split.images), strict=True)
    ]
    assert sorted(found) == [(label, number) for label in (0, 1) for number in range(12)]
    data = build_data("image_folder", root=tmp_path, search_every=2)
    assert data.search.labels.tolist() == sorted(data.search.labels.tolist())


def test_dangling_link_is_named_with_what_it_leads_to(root, tmp_path):
    (root / "train" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        DataError, match=r"a/gone\.png cannot be read: No such file.*is a link to .*nowhere\.png"
    ):
        build_data("image_folder", root=root)


@pytest.mark.parametrize("place", ["", "train"])
def test_images_without_class_folders_have_no_labels(place, tmp_path):
    for number in range(20):
        write_image(tmp_path / place / f"{number:02}.png", number)
    data = build_data("image_folder", root=tmp_path)
    assert (data.is_labelled, data.num_classes) == (False, 0)
    assert data.train.labels is data.test.labels is None
    found = [*reds(data.train.images), *reds(data.search.images), *reds(data.test.images)]
    assert sorted(found) == list(range(20))


def test_images_beside_class_folders_are_left_out_and_said(root, caplog):
    write_image(root / "train" / "stray.png", 9)
    data = build_data("image_folder", root=root)
    assert data.class_names == ("a", "b")
    assert "1 images in" in caplog.text
    assert "lie in no class folder: they are left out" in caplog.text


def test_labels_of_train_images_alone_are_refused(root):
    shutil.rmtree(root / "test")
    write_image(root / "test" / "000.png", 0)
    with pytest.raises(DataError, match=r"same class folders\. only in .*train: a, b"):
        build_data("image_folder", root=root)


def test_fingerprint_follows_names_and_sizes_not_the_place(root, tmp_path):
    original = build_data("image_folder", root=root).fingerprint()
    copy = shutil.copytree(root, tmp_path / "copy")
    assert build_data("image_folder", root=copy).fingerprint() == original
    assert build_data("image_folder", root=copy, seed=1).fingerprint() != original
    assert build_data("image_folder", root=copy, image_size=2).fingerprint() != original
    (copy / "train" / "a" / "000.png").rename(copy / "train" / "a" / "100.png")
    assert build_data("image_folder", root=copy).fingerprint() != original


def test_val_beside_train_and_test_is_searched_on(root):
    for name in ("a", "b"):
        for number in (50, 51):
            write_image(root / "val" / name / f"{number}.png", number)
    data = build_data("image_folder", root=root)
    assert reds(data.search.images) == [50, 51, 50, 51]
    assert data.search.labels.tolist() == [0, 0, 1, 1]
    assert max(reds(data.train.images)) == 19
    assert len(data.train) == 40
    assert reds(data.test.images) == [0, 1, 2, 0, 1, 2]


def test_images_are_turned_by_their_exif_orientation_only_where_asked_for(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is left goes to the top
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=exif)
    as_it_lies = build_data("image_folder", root=tmp_path)
    assert as_it_lies.image_shape == (3, 2, 4)
    assert as_it_lies.test.images[0, 0].tolist() == pixels[..., 0].tolist()
    turned = build_data("image_folder", root=tmp_path, exif=True)
    assert turned.image_shape == (3, 4, 2)
    assert turned.test.images[0, 0].tolist() == np.rot90(pixels[..., 0], -1).tolist()
    assert turned.fingerprint() != as_it_lies.fingerprint()


def test_images_with_alpha_have_four_channels(tmp_path):
    for number in range(3):
        Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / f"{number}.png")
    data = build_data("image_folder", root=tmp_path, channels=4)
    assert data.test.images[0, :, 0, 0].tolist() == [1, 2, 3, 4]
    assert data.mean == (0.5,) * 4
    with pytest.raises(DataError, match=r"one of 1, 3, 4 for image files, got 2.*data=package"):
        build_data("image_folder", root=tmp_path, channels=2).image_shape  # noqa: B018
