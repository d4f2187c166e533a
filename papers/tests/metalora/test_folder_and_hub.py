"""Image sets of the user's own: folders of images and sets of the Hugging Face hub."""

import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from metalora_papers.metalora.attributes import AttributeImages
from metalora_papers.metalora.cue import CueImages
from metalora_papers.metalora.image_sources import load_image_set
from metalora_papers.metalora.image_split import load_image_split

CLASSES = ("ant", "bee", "cat", "dog")
SEEN = (0, 2)


def write_folder(root, per_class=10, classes=CLASSES):
    """Class k is grey level 10 (k + 1), image i is one level up in its first pixel; no two files are alike."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = Image.new("L", (28, 28), 10 * (k + 1))
            image.putpixel((0, 0), 100 + i)
            image.save(root / name / f"{i:02d}.png")
    return root


def first_pixels(image_set):
    return [(label, int(image[0, 0])) for label, image in zip(image_set.labels.tolist(), image_set.images, strict=True)]


# ---- folders -------------------------------------------------------------------------------------------------------
def test_a_folder_without_parts_is_parted_by_seed_and_class(tmp_path):
    name = f"folder:{write_folder(tmp_path / 'set')}"
    train, test = load_image_set(name, "train"), load_image_set(name, "test")
    assert train.class_names == test.class_names == CLASSES and train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [8] * 4 and test.labels.bincount().tolist() == [2] * 4
    both = first_pixels(train) + first_pixels(test)
    assert len(set(both)) == 40 and set(both) == {(k, 100 + i) for k in range(4) for i in range(10)}
    assert all(int(image[5, 5]) == 10 * (k + 1) for image, k in zip(train.images, train.labels, strict=True))
    assert torch.equal(load_image_set(name, "train").images, train.images)


def test_a_folder_with_parts_keeps_them(tmp_path):
    write_folder(tmp_path / "set" / "train", 5)
    write_folder(tmp_path / "set" / "test", 1)
    assert len(load_image_set("folder:set", "train", tmp_path).labels) == 20  # relative to root
    assert load_image_set("folder:set", "test", tmp_path).labels.tolist() == [0, 1, 2, 3]


def test_colour_becomes_grey_at_the_size_that_is_asked(tmp_path):
    for name in ("red", "white"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (50, 40), name).save(tmp_path / name / f"{i}.JPG")
    small, large = (load_image_set(f"folder:{tmp_path}", "test", size=size) for size in (28, 64))
    assert small.images.shape == (2, 28, 28) and large.images.shape == (2, 64, 64)
    assert large.images[1].min() == 255 and abs(int(large.images[0, 9, 9]) - 76) <= 2  # 0.299 of red
    assert load_image_split(f"folder:{tmp_path}", (0,), size=64).images.shape == (4, 64, 64)


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path, 2, ("bus", "train"))
    assert load_image_set(f"folder:{tmp_path}", "test").class_names == ("bus", "train")


BAD_FOLDERS = {
    "not there": (lambda root: None, "set: no such folder"),
    "no test part": (lambda root: write_folder(root / "train"), "expected folders train and test, found train"),
    "other classes": (
        lambda root: (write_folder(root / "train", 2), write_folder(root / "test", 2, ("ant", "bee", "cat", "cow"))),
        "in only one of them: cow, dog",
    ),
    "one image": (lambda root: write_folder(root, 1), "class 'ant' has 1 images; parting 80/20 needs two"),
}


@pytest.mark.parametrize("make, message", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_an_unusable_folder_is_one_line(make, message, tmp_path):
    make(tmp_path / "set")
    with pytest.raises(ValueError, match=message) as error:
        load_image_set(f"folder:{tmp_path / 'set'}", "train")
    assert "\n" not in str(error.value)


def test_another_size_of_a_set_that_has_one_is_refused():
    with pytest.raises(ValueError, match="'digits' is 28×28; size=64"):
        load_image_set("digits", "train", size=64)


def test_a_name_that_is_nearly_a_folder():
    with pytest.raises(ValueError, match="did you mean 'folder:PATH'"):
        load_image_set("folder/PATH", "train")


# ---- the suites take them ------------------------------------------------------------------------------------------
def test_suites_draw_from_a_folder(tmp_path):
    name = f"folder:{write_folder(tmp_path, 30)}"
    suite = AttributeImages(name, seen=SEEN, attributes=("class", "hue"))
    episode = suite.episode("class", "train", 8, 6, seed=0, classes="unseen")
    assert episode.support_x.shape == (8, 3, 32, 32) and sorted(episode.support_y.tolist()) == [0] * 4 + [1] * 4
    cue = CueImages(name, seen=SEEN)
    batch = cue.batch("train", 6, seed=0, n_domains=3)
    assert batch.shifted.shape == (6, 3, 28, 28) and set(batch.labels.tolist()) <= set(SEEN)
    sets = cue.bank_and_queries(batch.domains[0], "seen", per_class=2, n_query=2, seed=0)
    assert sets.bank_x.shape == (4, 3, 28, 28)


# ---- the hub -------------------------------------------------------------------------------------------------------
class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Rows:
    """As much of datasets.Dataset as is read."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def __getitem__(self, column):
        return self.columns[column]

    def select(self, rows):
        return Rows({name: [values[row] for row in rows] for name, values in self.columns.items()}, self.features)


ImageFeature = type("Image", (), {})


def part(n, classes=2, **features):
    """n images whose grey is their number, labels in turn."""
    features = features or {"img": ImageFeature(), "label": ClassLabel(["no", "yes"])}
    values = {
        "Image": [Image.new("RGB", (9, 9), (i, i, i)) for i in range(n)],
        "ClassLabel": [i % classes for i in range(n)],
        "Value": ["bac"[i % classes] for i in range(n)],
    }
    return Rows({name: values[type(feature).__name__] for name, feature in features.items()}, features)


@pytest.fixture
def hub(monkeypatch):
    """Put parts, or an error, in place of the hub; returns the calls."""
    calls = []

    def put(answer):
        def load_dataset(name, cache_dir=None):
            calls.append((name, cache_dir))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return calls

    return put


@pytest.mark.parametrize("other", ["test", "validation"])
def test_hub_parts_columns_and_classes_are_found(hub, other, tmp_path):
    calls = hub({"train": part(6), other: part(4)})
    train, test = (load_image_set("hub:me/cats", split, tmp_path) for split in ("train", "test"))
    assert train.images.shape == (6, 28, 28) and train.images[:, 3, 3].tolist() == list(range(6))
    assert len(test.labels) == 4 and train.labels.tolist() == [0, 1] * 3 and train.class_names == ("no", "yes")
    assert calls[0] == ("me/cats", str(tmp_path))


def test_a_hub_set_of_one_part_is_parted_by_seed(hub):
    hub({"train": part(20)})
    train, test = (load_image_set("hub:me/cats", split) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [8, 8] and test.labels.bincount().tolist() == [2, 2]
    assert sorted(train.images[:, 0, 0].tolist() + test.images[:, 0, 0].tolist()) == list(range(20))
    assert all(int(image[0, 0]) % 2 == label for image, label in zip(test.images, test.labels, strict=True))


def test_string_labels_are_numbered_in_order(hub):
    hub({"train": part(4, i=ImageFeature(), label=Value()), "test": part(1, i=ImageFeature(), label=Value())})
    train, test = (load_image_set("hub:me/cats", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b") and train.labels.tolist() == [1, 0, 1, 0]


def test_the_label_column_can_be_named(hub):
    two = {"i": ImageFeature(), "fine": ClassLabel(["x", "y"]), "coarse": ClassLabel(["u", "v"])}
    hub({"train": part(4, **two), "test": part(2, **two)})
    with pytest.raises(ValueError, match=r"expected one label column, found 2 .*hub:me/cats:COLUMN"):
        load_image_set("hub:me/cats", "train")
    assert load_image_set("hub:me/cats:coarse", "train").class_names == ("u", "v")
    with pytest.raises(ValueError, match="unknown label column of .* did you mean 'fine'"):
        load_image_set("hub:me/cats:fin", "train")


BAD_HUBS = {
    "offline": (ConnectionError("Couldn't reach the Hub\n(offline)"), r"from the hub .*reach the Hub \(offline\)"),
    "no image column": ({"train": part(2, text=Value(), label=Value())}, r"one image column, found 0 \(columns: text"),
    "no label column": ({"train": part(2, i=ImageFeature(), text=Value())}, "one label column, found 0"),
    "strange parts": ({"en": part(2), "de": part(2)}, "expected the parts train and test, found de, en"),
    "a label of no class": ({"train": part(3, classes=3), "test": part(1)}, "label 2 in column 'label' is none of its"),
}


@pytest.mark.parametrize("answer, message", BAD_HUBS.values(), ids=BAD_HUBS)
def test_an_unusable_hub_set_is_one_line(hub, answer, message):
    hub(answer)
    with pytest.raises(ValueError, match=message) as error:
        load_image_set("hub:me/cats", "train")
    assert str(error.value).startswith("hub:me/cats") and "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets: pip install datasets"):
        load_image_set("hub:me/cats", "train")


def test_the_real_package_is_called_as_it_wants(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    write_folder(tmp_path / "set" / "train", 3)
    write_folder(tmp_path / "set" / "test", 2)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    test = load_image_set(f"hub:{tmp_path / 'set'}", "test", tmp_path / "cache")
    assert test.class_names == CLASSES and test.labels.bincount().tolist() == [2] * 4
    assert int(test.images[0, 5, 5]) == 10
