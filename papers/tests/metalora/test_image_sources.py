"""Loading image sets: shapes, fixed splits, and errors that name the file or the nearest name."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from metalora_papers.metalora.image_sources import load_image_set, read_idx
from metalora_papers.metalora.image_split import ImageSplit


@pytest.mark.parametrize(("name", "n_train", "n_test"), [("mnist-5k", 4000, 1000), ("digits", 1258, 539)])
def test_sets_are_bytes_with_a_fixed_stratified_split(name, n_train, n_test):
    train, test = load_image_set(name, "train"), load_image_set(name, "test")
    assert abs(len(train.labels) - n_train) <= 2 and abs(len(test.labels) - n_test) <= 2
    assert train.images.shape[1:] == (28, 28) and train.images.dtype == torch.uint8 and train.images.max() > 250
    assert train.labels.dtype == torch.int64 and train.labels.unique().tolist() == list(range(10))
    again = load_image_set(name, "train")
    assert torch.equal(train.images, again.images) and torch.equal(train.labels, again.labels)
    share = train.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert share.max() - share.min() < 0.01


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("mnist5k", "train", "did you mean 'mnist-5k'"),
        ("digits", "tset", "did you mean 'test'"),
        ("x", "test", "known: mnist-5k"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_image_set(name, split)


def _idx(folder, name, magic, shape, data):
    path = folder / name
    header = bytes(magic) + np.array(shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + data))
    return path


def test_fashion_is_read_from_root(tmp_path):
    for stem, n in (("train", 3), ("t10k", 2)):
        _idx(tmp_path, f"{stem}-images-idx3-ubyte.gz", (0, 0, 8, 3), (n, 28, 28), bytes(range(28)) * 28 * n)
        _idx(tmp_path, f"{stem}-labels-idx1-ubyte.gz", (0, 0, 8, 1), (n,), bytes(range(n)))
    test = load_image_set("fashion-mnist", "test", tmp_path)
    assert test.images.shape == (2, 28, 28) and test.labels.tolist() == [0, 1]
    assert test.images[1, 5].tolist() == list(range(28))
    with pytest.raises(ValueError, match="no train-images"):
        load_image_set("fashion-mnist", "test", tmp_path / "elsewhere")


def test_broken_idx_files_name_file_expected_and_found(tmp_path):
    short = _idx(tmp_path, "short.gz", (0, 0, 8, 3), (2, 28, 28), bytes(100))
    with pytest.raises(ValueError, match=r"short\.gz: expected 1568 bytes .* found 100"):
        read_idx(short, 3)
    wrong = _idx(tmp_path, "wrong.gz", (0, 0, 8, 1), (2,), bytes(2))
    with pytest.raises(ValueError, match=r"wrong\.gz: expected an IDX header starting 00000803, found 00000801"):
        read_idx(wrong, 3)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(short.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"cut\.gz: expected a complete gzip"):
        read_idx(cut, 3)


def test_image_folder_and_its_errors(tmp_path):
    name = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="no such folder"):
        load_image_set(f"{name}/none", "train")
    (tmp_path / "cat").mkdir()
    for k in range(2):
        Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "cat" / f"{k}.png")
    with pytest.raises(ValueError, match="at least two class subfolders, found 1"):
        load_image_set(name, "train")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog: no images"):
        load_image_set(name, "train")
    for k in range(2):
        Image.new("L", (28, 28), 9).save(tmp_path / "dog" / f"{k}.png")
    images = load_image_set(name, "train")
    assert images.images.shape == (2, 28, 28) and images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1] and images.images[1, 0, 0] == 9
    for k in range(2):
        (tmp_path / "dog" / f"{k}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"\d\.png: not a readable image"):
        load_image_set(name, "train")


@pytest.mark.parametrize("seen", [(), (0, 0), (0, 10), tuple(range(10))])
def test_unusable_seen_classes_are_refused(seen):
    digits = load_image_set("digits", "test")
    with pytest.raises(ValueError, match="seen="):
        ImageSplit(digits, digits, seen)
