"""The pictures of a classification task: published parts are kept, missing ones are drawn, mistakes are named."""

import pickle

import pytest
import torch
from papers_oracles.vision import write_pictures

from metalora_papers.tenslora.pictures import load_pictures

DATASETS = ("dtd", "cifar10", "cifar100")


def sizes(found):
    return {name: len(part) for name, part in found.parts.items()}


def names(found):
    return {name: {str(path) for path in part.items} for name, part in found.parts.items()}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ((), {"train": 14, "val": 2, "test": 4}),
        (("train", "test"), {"train": 18, "val": 2, "test": 20}),
        (("train", "valid", "test"), {"train": 20, "val": 20, "test": 20}),
    ],
)
def test_a_folder_has_its_parts_or_draws_them(folders, expected, tmp_path):
    for name in folders or (".",):
        write_pictures(tmp_path / "set" / name)
    found = load_pictures("folder:set", str(tmp_path))
    assert sizes(found) == expected and found.class_names == ("dark", "light")
    assert len(set.union(*names(found).values())) == sum(expected.values())
    for part in found.parts.values():
        assert ["light" in str(path.parent.name) for path in part.items] == part.labels.bool().tolist()
        assert part.labels.bincount().tolist() == [len(part) // 2] * 2
    assert names(load_pictures("folder:set", str(tmp_path))) == names(found)


def test_eurosat_is_the_folder_of_torchvision(tmp_path):
    from torchvision.datasets import EuroSAT

    write_pictures(tmp_path / "eurosat" / "2750", ("Forest", "River"))
    theirs = EuroSAT(tmp_path, download=False)
    found = load_pictures("eurosat", str(tmp_path))
    assert sizes(found) == {"train": 14, "val": 2, "test": 4} and list(found.class_names) == theirs.classes
    assert set.union(*names(found).values()) == {path for path, _ in theirs.samples}


def test_dtd_has_its_first_official_split(tmp_path):
    from torchvision.datasets import DTD

    folder = tmp_path / "dtd" / "dtd"
    write_pictures(folder / "images", ("banded", "dotted"))
    (folder / "labels").mkdir()
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{name}/{3 * number + i:02d}.png" for name in ("banded", "dotted") for i in range(3)]
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")
    found = load_pictures("dtd", str(tmp_path))
    assert sizes(found) == {"train": 6, "val": 6, "test": 6}
    for part, pictures in found.parts.items():
        theirs = DTD(tmp_path, split=part, download=False)
        assert list(found.class_names) == theirs.classes
        assert [(str(path), label) for path, label in zip(pictures.items, pictures.labels.tolist(), strict=True)] == [
            (str(path), label) for path, label in zip(theirs._image_files, theirs._labels, strict=True)
        ]


def test_cifar_keeps_its_test_files(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: setattr(self, "classes", ["cat", "dog"]))
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for file, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        pixels = torch.randint(0, 256, (4, 3 * 32 * 32), dtype=torch.uint8).numpy()
        (folder / file).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 0, 1]}))
    found = load_pictures("cifar10", str(tmp_path))
    assert sizes(found) == {"train": 18, "val": 2, "test": 4} and found.class_names == ("cat", "dog")
    assert (found.parts["test"].items == CIFAR10(tmp_path, train=False).data).all()


def test_a_set_of_the_hub_is_read_through_datasets(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for part in ("train", "validation", "test"):
        write_pictures(tmp_path / "set" / part, count=4)
    found = load_pictures(f"hub:{tmp_path / 'set'}", str(tmp_path / "cache"))
    assert sizes(found) == {"train": 8, "val": 8, "test": 8} and found.class_names == ("dark", "light")
    greys = [picture.convert("L").getpixel((0, 0)) for picture in found.parts["test"].items]
    assert [grey // 100 for grey in greys] == found.parts["test"].labels.tolist()


def test_the_emoji_keep_the_parts_of_their_suite(emoji_folder, monkeypatch):
    from metalora_papers.metalora import emoji
    from metalora_papers.tenslora import pictures

    vendors = ("google", "apple")
    monkeypatch.setattr(pictures, "load_emoji", lambda folder: emoji.load_emoji(vendors, folder))
    items = emoji.load_emoji(vendors, emoji_folder)
    found = load_pictures("emoji:skin", str(emoji_folder))
    codes = items.notions["skin"].codes
    for name, part in found.parts.items():
        rows = [row for row in items.parts[name].tolist() if codes[row] >= 0]
        assert part.labels.tolist() == codes[rows].tolist()
        assert torch.equal(part.items, items.inputs[rows].permute(0, 3, 1, 2))


def lonely(root):
    write_pictures(root / "set", count=1)


def unlike(root):
    write_pictures(root / "set" / "train")
    write_pictures(root / "set" / "test", ("dark", "grey"))


@pytest.mark.parametrize(
    ("data", "prepare", "message"),
    [
        ("dtdd", None, "did you mean 'dtd'"),
        ("dtd", None, "no file .*train1.txt"),
        ("cifar100", None, "no complete files"),
        ("folder:nowhere", None, "no such folder"),
        ("folder:set", lonely, "class 'dark' has 1 pictures"),
        ("folder:set", unlike, "not in both train and test: grey, light"),
        ("emoji:skins", None, "did you mean 'skin'|fetch them"),
    ],
)
def test_mistakes_are_named(data, prepare, message, tmp_path):
    if prepare is not None:
        prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_pictures(data, str(tmp_path))


@pytest.mark.parametrize("data", DATASETS)
def test_a_published_set_needs_its_folder(data):
    with pytest.raises(ValueError, match="nothing is downloaded"):
        load_pictures(data)
