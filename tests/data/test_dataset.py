import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from amc.data import DataSet, Split
from amc.data.division import calibration_count, shuffled
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
    data = DataSet.from_tensors(*numbered(200), calibration=16)
    found = [number for name in SPLITS for number in numbers(getattr(data, name))]
    assert sorted(found) == list(range(200))


def test_default_splits_are_a_fifth_for_test_and_search_and_a_tenth_for_calibration():
    images = torch.zeros(1600, 1, 1, 1, dtype=torch.uint8)
    data = DataSet.from_tensors(images, torch.arange(1600) % 4)
    sizes = {name: len(getattr(data, name)) for name in SPLITS}
    assert sizes == {"test": 320, "search": 256, "calibration": 128, "train": 1280 - 256 - 128}
    assert data.shortage == ""


def test_few_images_are_calibrated_by_all_that_are_neither_searched_on_nor_tested_with():
    data = DataSet.from_tensors(*numbered(200))
    sizes = {name: len(getattr(data, name)) for name in SPLITS}
    assert sizes == {"test": 40, "search": 32, "calibration": 160 - 32, "train": 160 - 32}
    assert numbers(data.calibration) == numbers(data.train)
    found = [
        number for name in ("train", "search", "test") for number in numbers(getattr(data, name))
    ]
    assert sorted(found) == list(range(200))


@pytest.mark.parametrize(
    ("count", "rest", "promised", "expected"),
    [
        (1280, 1024, None, 128),  # a tenth
        (1279, 1024, None, None),  # a tenth would be 127: all 1024
        (100_000, 80_000, None, 5000),
        (1280, 128, None, None),  # what search leaves is no more than a tenth
        (60, 48, 6, 6),
    ],
)
def test_calibration_has_what_was_promised_or_a_tenth_or_where_that_is_few_all(
    count, rest, promised, expected
):
    assert calibration_count(count, rest, promised) == expected


def counts(split: Split, classes: int) -> list[int]:
    return torch.bincount(split.labels, minlength=classes).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_splits_of_few_images_have_their_share_of_each_class(seed):
    # 9 classes of 3 and one of 40; a fifth of 67 is 13: 13 * 40 / 67 = 7.8, 13 * 3 / 67 = 0.6
    labels = torch.cat([torch.arange(9).repeat_interleave(3), torch.full((40,), 9)])
    images = torch.arange(67, dtype=torch.uint8).view(-1, 1, 1, 1)
    data = DataSet.from_tensors(
        images, labels, test_images=images[:1], test_labels=labels[:1], calibration=10, seed=seed
    )
    *small, large = counts(data.search, 10)
    assert large in (7, 8)
    assert sum(small) == 13 - large
    assert max(small) == 1
    *small, large = counts(data.calibration, 10)  # 10 * 40 / 67 = 6
    assert large in (5, 6, 7)
    assert max(small) == 1
    assert counts(data.train, 10)[9] == 40 - counts(data.search, 10)[9] - large


def test_test_images_cut_off_few_images_have_their_share_of_each_class():
    data = DataSet.from_tensors(*numbered(60, classes=6))
    assert counts(data.test, 6) == [2] * 6
    found = torch.tensor(counts(data.search, 6))  # 9 of 48
    assert ((found == 1) | (found == 2)).all()


def test_order_of_few_images_alternates_between_classes_as_their_sizes_do():
    labels = torch.tensor([0] * 6 + [1] * 3)
    for seed in range(3):
        order = shuffled(9, labels, seed, smallest=1)
        assert labels[order].tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]


def test_many_images_are_divided_by_chance_alone():
    labels = torch.arange(400) % 4
    by_chance = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    assert torch.equal(shuffled(400, labels, 3, smallest=40), by_chance)  # 10 of each class
    assert not torch.equal(shuffled(400, labels, 3, smallest=39), by_chance)
    assert torch.equal(shuffled(400, None, 3, smallest=1), by_chance)


def test_too_few_images_to_divide_are_said():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(DataError, match=r"1 image cannot be divided.*at least 3 are needed"):
        DataSet.from_tensors(images[:1], labels[:1])
    with pytest.raises(DataError, match=r"1 training images cannot give 1 for search and 1"):
        DataSet.from_tensors(images[:2], labels[:2])
    data = DataSet.from_tensors(images, labels)
    assert [len(getattr(data, name)) for name in SPLITS] == [1, 1, 1, 1]


def test_few_images_for_calibration_or_search_are_said():
    data = DataSet.from_tensors(*numbered(200), calibration=20)
    assert data.shortage.startswith("Few images: 20 for calibration and 32 for search. ")
    assert "fewer than 128" in data.shortage
    assert DataSet.from_tensors(*numbered(200)).shortage.startswith("Few images: 32 for search. ")


def test_tensors_may_come_without_labels():
    images, labels = numbered(200)
    data = DataSet.from_tensors(images)
    assert (data.is_labelled, data.num_classes, data.class_names) == (False, 0, ())
    assert [getattr(data, name).labels for name in SPLITS] == [None] * 4
    found = [
        number for name in ("train", "search", "test") for number in numbers(getattr(data, name))
    ]
    assert sorted(found) == list(range(200))
    assert data.labels_in_words == "no labels"
    with pytest.raises(DataError, match="without labels, no test_labels"):
        DataSet.from_tensors(images, test_images=images, test_labels=labels)


def test_labels_that_say_nothing_do_not_count():
    data = DataSet.from_tensors(*numbered(200))
    assert data.labels_in_words == "4 classes"
    other = data.without_labels("they say nothing")
    assert (other.why_unlabelled, other.train_labels) == ("they say nothing", None)
    assert isinstance(other, DataSet)
    assert (other.is_labelled, other.num_classes, other.image_shape) == (False, 0, (1, 2, 2))
    assert other.fingerprint() != data.fingerprint()
    for name in SPLITS:
        assert getattr(other, name).labels is None
        assert getattr(other, name).images is getattr(data, name).images  # not read twice
        assert getattr(data, name).labels is not None


def test_labels_may_be_any_tensors_by_image():
    images, labels = numbered(200)
    dense = labels[:, None, None].expand(-1, 2, 2) / 4
    data = DataSet.from_tensors(images, dense)
    assert (data.num_classes, data.labels_in_words) == (0, "labels of shape (2, 2)")
    for name in SPLITS:
        split = getattr(data, name)
        assert split.labels[:, 1, 1].tolist() == [number % 4 / 4 for number in numbers(split)]
    assert data.fingerprint() != DataSet.from_tensors(images, dense + 1).fingerprint()
    with pytest.raises(DataError, match=r"200 integers, one per image.*of shape \(9, 2, 2\)"):
        DataSet.from_tensors(images, dense[:9])


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
    assert numbers(data.train) == [number for number in range(60) if number % 10]


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
        (torch.zeros(9, 3, 0, 5), torch.zeros(9).long(), r"got \(9, 3, 0, 5\)"),
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


def test_test_dataset_is_read_once_and_only_when_needed_but_for_its_ends():
    images, labels = numbered(60)
    test = Counting(images[:5], labels[:5])
    data = DataSet.from_dataset(TensorDataset(images, labels), test)
    assert len(data.train) + len(data.search) == 60
    data.fingerprint()
    assert test.read == [0, 4]
    assert data.test_labels.tolist() == labels[[0, 4]].tolist()
    assert numbers(data.test) == numbers(data.test) == [0, 1, 2, 3, 4]
    assert test.read == [0, 4, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        ((1, 3, 3), 7, r"Labels must be from 0 to 2 \(3 classes\), got 0 to 7"),
        ((1, 9, 9), 1, r"Item 5 of the test dataset has an image of shape \(1, 9, 9\)"),
        ((1, 3, 3), None, "Item 5 of the test dataset has no label"),
    ],
)
def test_what_is_wrong_at_the_end_of_a_test_dataset_is_said_at_once(image, label, message):
    def item(shape, label):
        image = torch.zeros(shape, dtype=torch.uint8)
        return (image,) if label is None else (image, label)

    train = [item((1, 3, 3), index % 3) for index in range(60)]
    test = [*(item((1, 3, 3), index % 3) for index in range(5)), item(image, label)]
    with pytest.raises(DataError, match=message):
        DataSet.from_dataset(train, test)


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
        ([(torch.zeros(1, 2, 2), 0, 0)], "Item 0 .*image tensor or PIL.*got 3 things"),
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
        ({"channels": 0}, r"data\.channels must be an integer >= 1, got 0"),
        ({"image_size": 0}, r"data\.image_size must be an integer >= 1.*got 0"),
        ({"image_size": [4, 4, 4]}, r"both of them, \[height, width\], got \[4, 4, 4\]"),
        ({"exif": "yes"}, r"data\.exif must be true or false, got 'yes'"),
        ({"ignored": 256}, r"data\.ignored must be a number from 0 to 255.*got 256"),
        ({"mask_values": [1, 1]}, r"data\.mask_values must be .*different ones, got \[1, 1\]"),
        ({"mask_values": [0, 9], "ignored": [9]}, r"\[0, 9\] and data\.ignored \[9\].*in common"),
        ({"mean": (0.1, 0.2)}, r"1 number or 1 \(one per channel\)"),
        ({"mean": "half"}, r"data\.mean must be a finite number, or a list.*got 'half'"),
        ({"mean": (float("nan"),)}, "must be a finite number"),
        ({"mean": True}, "must be a finite number"),
        ({"mean": ()}, "must be a finite number"),
        ({"std": (0.0,)}, "std must be greater than zero"),
        ({"augment": ("rotate",)}, r"flip, crop, got \['rotate'\]"),
        ({"augment": "flip"}, r"a list of flip, crop, got 'flip'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        DataSet.from_tensors(*numbered(50), **options)


def test_one_number_stands_for_all_channels():
    images = torch.zeros(50, 3, 2, 2, dtype=torch.uint8)
    data = DataSet.from_tensors(images, torch.arange(50) % 2, mean=0.1307, std=1)
    assert (data.mean, data.std) == ((0.1307,) * 3, (1,) * 3)
