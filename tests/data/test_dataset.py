import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from amc.data import DataSet, Split
from amc.errors import DataError

SPLITS = ("train", "calibration", "search", "test")


def numbered(count: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 1x2x2 whose first pixel is their number, and labels that repeat."""
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return images, torch.arange(count) % classes


def numbers(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_splits_never_overlap_and_cover_every_image():
    data = DataSet.from_tensors(*numbered(200))
    found = [number for name in SPLITS for number in numbers(getattr(data, name))]
    assert sorted(found) == list(range(200))


def test_default_splits_are_a_fifth_for_test_and_search_and_a_tenth_for_calibration():
    data = DataSet.from_tensors(*numbered(200))
    sizes = {name: len(getattr(data, name)) for name in SPLITS}
    assert sizes == {"test": 40, "search": 32, "calibration": 16, "train": 160 - 32 - 16}


def test_labels_stay_with_their_images():
    data = DataSet.from_tensors(*numbered(200))
    for name in SPLITS:
        split = getattr(data, name)
        assert split.labels.tolist() == [number % 4 for number in numbers(split)]


def test_equal_seeds_choose_equal_splits_and_other_seeds_others():
    first, again, other = (DataSet.from_tensors(*numbered(200), seed=seed) for seed in (1, 1, 2))
    for name in SPLITS:
        assert numbers(getattr(first, name)) == numbers(getattr(again, name))
        assert numbers(getattr(first, name)) != numbers(getattr(other, name))


def test_search_every_takes_each_kth_training_image_beginning_with_the_first():
    images, labels = numbered(60)
    data = DataSet.from_tensors(
        images, labels, test_images=images[:4], test_labels=labels[:4], search_every=10
    )
    assert numbers(data.search) == [0, 10, 20, 30, 40, 50]
    rest = numbers(data.train) + numbers(data.calibration)
    assert sorted(rest) == [number for number in range(60) if number % 10]


def test_counts_of_the_user_are_kept():
    data = DataSet.from_tensors(*numbered(200), search=7, calibration=9)
    assert (len(data.search), len(data.calibration)) == (7, 9)


def test_splits_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(DataError, match="160 training images cannot give 100 for search and 60"):
        DataSet.from_tensors(*numbered(200), search=100, calibration=60)


def test_normalised_subtracts_the_mean_of_each_channel_and_divides_by_its_deviation():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4, 1, 1, 1)
    split = Split(images, torch.zeros(4, dtype=torch.int64))
    out = split.normalised((0.5, 0.5, 0.2), (0.5, 0.25, 1.0), 1, 3)
    # 0 -> (0 - .5) / .5; 255 -> (1 - .5) / .25; 51 -> (.2 - .2) / 1
    assert out.shape == (2, 3, 1, 1)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0].flatten(), torch.tensor([-1.0, 2.0, 0.0]))


def test_float_images_are_taken_as_normalised_already():
    images = torch.randn(50, 3, 2, 2, dtype=torch.float64)
    data = DataSet.from_tensors(images, torch.arange(50) % 2)
    out = data.search.normalised(data.mean, data.std)
    assert out.dtype == torch.float32
    assert torch.equal(out, data.search.images)


def test_image_size_and_channels_apply_to_tensors():
    images = torch.full((50, 3, 8, 8), 100, dtype=torch.uint8)
    data = DataSet.from_tensors(images, torch.arange(50) % 2, image_size=4, channels=1)
    assert data.image_shape == (1, 4, 4)
    assert (data.mean, data.std) == ((0.5,), (0.5,))
    assert data.test.images.unique().tolist() == [100]  # grey stays grey


def test_fingerprint_follows_content_division_and_normalisation_but_not_augmentation():
    images, labels = numbered(200)
    original = DataSet.from_tensors(images, labels).fingerprint()
    assert DataSet.from_tensors(images.clone(), labels).fingerprint() == original
    assert DataSet.from_tensors(images, labels, augment=("flip",)).fingerprint() == original
    for change in ({"seed": 1}, {"search": 9}, {"mean": (0.4,)}, {"class_names": "abcd"}):
        assert DataSet.from_tensors(images, labels, **change).fingerprint() != original
    images[17, 0, 1, 1] += 1
    assert DataSet.from_tensors(images, labels).fingerprint() != original


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(9, 5, 5), torch.zeros(9).long(), r"shape \(N, C, H, W\)"),
        (torch.zeros(9, 2, 5, 5), torch.zeros(9).long(), "1 or 3 channels"),
        (torch.zeros(0, 3, 5, 5), torch.zeros(0).long(), r"got \(0, 3, 5, 5\)"),
        (torch.zeros(9, 3, 5, 5).int(), torch.zeros(9).long(), "must be uint8.*int32"),
        (torch.zeros(9, 3, 5, 5), torch.zeros(8).long(), "9 integers, one per image"),
        (torch.zeros(9, 3, 5, 5), torch.zeros(9), "integers.*float32"),
        (torch.full((9, 3, 5, 5), torch.nan), torch.zeros(9).long(), "NaN or infinity"),
        (torch.zeros(9, 3, 5, 5), torch.full((9,), -1), "from 0 to"),
    ],
)
def test_tensors_that_are_no_labelled_images_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        DataSet.from_tensors(images, labels)


def test_labels_beyond_the_class_names_are_refused():
    with pytest.raises(DataError, match=r"from 0 to 2 \(3 classes\), got 0 to 3"):
        DataSet.from_tensors(*numbered(50), class_names=("a", "b", "c"))


def test_test_images_without_labels_or_of_another_shape_or_type_are_refused():
    images, labels = numbered(50)
    with pytest.raises(DataError, match="test_images and test_labels, or neither"):
        DataSet.from_tensors(images, labels, test_images=images)
    for other, message in (
        (torch.zeros(5, 3, 2, 2).byte(), "like the training"),
        (torch.zeros(5, 1, 2, 2), "float32"),
    ):
        with pytest.raises(DataError, match=message):
            DataSet.from_tensors(images, labels, test_images=other, test_labels=labels[:5])


class Counting(TensorDataset):
    """A map-style dataset that knows which items were read."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__(*tensors)
        self.read: list[int] = []

    def __getitem__(self, index: int):
        self.read.append(index)
        return super().__getitem__(index)


def test_torch_dataset_gives_the_splits_of_its_tensors():
    images, labels = numbered(100)
    data = DataSet.from_dataset(TensorDataset(images, labels))
    same = DataSet.from_tensors(images, labels)
    for name in SPLITS:
        assert numbers(getattr(data, name)) == numbers(getattr(same, name))


def test_test_dataset_is_read_once_and_only_when_needed():
    images, labels = numbered(60)
    test = Counting(images[:5], labels[:5])
    data = DataSet.from_dataset(TensorDataset(images, labels), test)
    assert len(data.train) + len(data.search) + len(data.calibration) == 60
    data.fingerprint()
    assert test.read == []
    assert numbers(data.test) == numbers(data.test) == [0, 1, 2, 3, 4]
    assert test.read == [0, 1, 2, 3, 4]


def test_pil_images_and_class_names_of_a_dataset_are_taken():
    class Pictures:
        classes = ("black", "white")

        def __len__(self):
            return 20

        def __getitem__(self, index):
            if index >= 20:
                raise IndexError
            return Image.new("RGB", (3, 2), (255 * (index % 2),) * 3), index % 2

    data = DataSet.from_dataset(Pictures())
    assert data.image_shape == (3, 2, 3)
    assert data.class_names == ("black", "white")
    assert data.test.images[:, 0, 0, 0].tolist() == (data.test.labels * 255).tolist()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 3), 0)], r"Item 1 .*\(1, 3, 3\)"),
        ([("picture.jpg", 0)], "Item 0 .*image of type str"),
        ([(torch.zeros(1, 2, 2), "cat")], "Item 0 .*integer label"),
        ([torch.zeros(1, 2, 2)], "Item 0 .*image tensor or PIL"),
        ([], "training dataset is empty"),
    ],
)
def test_datasets_of_other_items_are_refused(items, message):
    with pytest.raises(DataError, match=message):
        DataSet.from_dataset(items)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serach": 3}, r"Unknown data options \['serach'\].*search"),
        ({"search": 0}, r"data\.search must be an integer >= 1, got 0"),
        ({"calibration": 1.5}, r"data\.calibration must be an integer >= 1, got 1\.5"),
        ({"search_every": 1}, r"data\.search_every must be an integer >= 2"),
        ({"search": 5, "search_every": 5}, "not both"),
        ({"channels": 2}, "must be 1 or 3, got 2"),
        ({"mean": (0.1, 0.2)}, r"1 number or 1 \(one per channel\)"),
        ({"mean": "half"}, r"data\.mean must be a list"),
        ({"mean": (float("nan"),)}, "finite numbers"),
        ({"std": (0.0,)}, "std must be greater than zero"),
        ({"augment": ("rotate",)}, r"flip, crop, got \['rotate'\]"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        DataSet.from_tensors(*numbered(50), **options)
