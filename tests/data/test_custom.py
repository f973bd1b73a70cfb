"""Data of a function of the user's."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from amc.data import DataSet, build_data
from amc.errors import DataError


@pytest.fixture
def module(monkeypatch) -> ModuleType:
    """A module of the user's; functions are put into it."""
    made = ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", made)
    return made


def built(module: ModuleType, result: object, **options: object) -> DataSet:
    module.make = lambda: result
    return build_data("my_data:make", **options)


def numbered(first: int, count: int, channels: int = 2) -> torch.Tensor:
    images = torch.zeros(count, channels, 4, 6, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(first, first + count)
    return images


def numbers(split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_tensors_of_any_number_of_channels_without_labels(module):
    data = built(module, numbered(0, 40, 12), mean=[0.1 * k for k in range(12)], std=0.25)
    assert data.image_shape == (12, 4, 6)
    assert not data.is_labelled
    assert data.mean[11] == pytest.approx(1.1)
    assert data.std == (0.25,) * 12
    with pytest.raises(DataError, match=r"data\.mean must hold 1 number or 12 \(one per channel\)"):
        built(module, numbered(0, 40, 12), mean=[0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=r"training images have 12 channels, and data\.channels=3"):
        built(module, numbered(0, 40, 12), channels=3)


def test_pairs_of_images_and_masks_and_arrays(module):
    masks = torch.arange(40)[:, None, None].expand(-1, 4, 6) % 5
    data = built(module, (numbered(0, 40), masks))
    assert data.search.labels[:, 3, 5].tolist() == [n % 5 for n in numbers(data.search)]
    assert built(module, (numbered(0, 40).numpy(), masks.numpy())).fingerprint() == (
        data.fingerprint()
    )


def test_masks_are_resized_with_their_images(module):
    masks = torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]]).repeat_interleave(2, 0).expand(40, -1, -1)
    data = built(module, (torch.zeros(40, 3, 4, 4), masks), image_size=2)
    assert data.image_shape == (3, 2, 2)
    assert data.test.labels[0].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("name", ["val", "search"])
def test_splits_by_name_are_kept(module, name):
    labels = torch.arange(30) % 3
    data = built(
        module,
        {
            "train": TensorDataset(numbered(0, 20), labels[:20]),
            name: (numbered(20, 6), labels[20:26]),
            "test": TensorDataset(numbered(26, 4), labels[26:]),
        },
    )
    assert numbers(data.train) == list(range(20))
    assert numbers(data.search) == list(range(20, 26))
    assert numbers(data.test) == list(range(26, 30))
    assert data.search.labels.tolist() == [n % 3 for n in range(20, 26)]
    assert data.num_classes == 3


def test_datasets_of_images_with_masks_of_any_kind(module):
    items = [
        (Image.new("RGBA", (6, 4), (n, 0, 0, 9)), Image.new("L", (6, 4), n % 4)) for n in range(20)
    ]
    data = built(module, items)
    assert data.image_shape == (4, 4, 6)
    assert data.train.labels.dtype == torch.uint8
    assert data.train.labels[:, 0, 0].tolist() == [n % 4 for n in numbers(data.train)]
    alone = built(module, [torch.rand(3, 4, 6, dtype=torch.float64) for _ in range(20)])
    assert alone.train.images.dtype == torch.float32
    assert not alone.is_labelled


def test_the_function_is_given_root_and_seed_if_it_takes_them(module, tmp_path):
    def make(root, seed):
        assert (root, seed) == (tmp_path, 7)
        return numbered(0, 20)

    module.make = make
    assert build_data("my_data:make", root=tmp_path, seed=7).name == "my_data:make"


def test_a_data_set_is_taken_with_its_options(module):
    data = DataSet.from_tensors(numbered(0, 20), mean=0.25)
    assert built(module, data) is data
    with pytest.raises(DataError, match=r"has its options already: leave out data\.mean"):
        built(module, data, mean=0.5)


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            raise self.error
        return torch.zeros(3, 4, 4)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(3, 4, 4)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 4, 4)


class Huge(Failing):
    def __len__(self) -> int:
        return 10**12


IMAGE = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Failing(OSError("disk full")), "Item 2 of the training dataset cannot be read: OSError"),
        (Endless(), r"must know its length \(__len__\).*got Endless"),
        (Huge(OSError()), r"1000000000000 images of 3x4x4 take 192,000\.0 GB, and this machine"),
        ([IMAGE, IMAGE[:2]], r"Item 1 .* an image of shape \(2, 4, 4\), expected \(3, 4, 4\) like"),
        ([IMAGE, IMAGE.byte()], r"Item 1 .* an image of torch\.uint8, expected torch\.float32"),
        ([IMAGE[0]], r"Item 0 .* an image of shape \(4, 4\), expected \(channels, height, width\)"),
        ([(IMAGE, IMAGE[0]), (IMAGE, IMAGE[0, :2])], r"Item 1 .*label of shape \(2, 4\), expected"),
        ([(IMAGE, 1), IMAGE], "Item 1 .* has no label, and the first has one"),
        ([IMAGE, (IMAGE, 1)], "Item 1 .* has a label, and the first has none"),
        ([{"image": IMAGE}], "Item 0 .* image of type dict"),
        ({"test": IMAGE}, "must return a torch dataset.*got a dict of test"),
        ({"train": [IMAGE], "valid": [IMAGE]}, "got a dict of train, valid"),
        ({"train": [IMAGE], "val": [IMAGE], "search": [IMAGE]}, "got a dict of train, val, search"),
        (3, "must return a torch dataset.*got int"),
        ({"train": numbered(0, 9), "val": numbered(0, 9, 3)}, r"Search images must be \(2, 4, 6\)"),
        (
            {"train": numbered(0, 9), "val": (numbered(0, 9), torch.zeros(9).long())},
            "Give labels of training and search images, or of neither",
        ),
        (
            {
                "train": (numbered(0, 9), torch.zeros(9, 4, 6)),
                "val": (numbered(0, 9), torch.zeros(9, 2, 3)),
            },
            r"Labels of search images must be \(4, 6\) like those of training images, got \(2, 3\)",
        ),
    ],
)
def test_data_that_cannot_be_taken_are_said(module, made, message):
    with pytest.raises(DataError, match=message):
        built(module, made)


def test_functions_that_fail_or_are_not_there_are_said(module):
    module.make = lambda: np.zeros(3)[4]
    with pytest.raises(DataError, match="'my_data:make' could not be made: IndexError"):
        build_data("my_data:make")
    with pytest.raises(DataError, match="cannot import module 'no_such_data'"):
        build_data("no_such_data:make")
    with pytest.raises(DataError, match=r"data\.ignored is for image files"):
        built(module, numbered(0, 9), ignored=3)
