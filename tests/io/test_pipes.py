"""A pipe, a device or a folder in the place of a file is one line, and nobody waits for a pipe."""

import os

import pytest
from torch import nn

import metalora
from metalora import Condition
from metalora._util.reading import LARGEST_TEXT, read_text
from metalora.learner import AdaptedTask, MetaLearner


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


READERS = {
    "adapter": ("adapter", lambda path: metalora.load(network(), path)),
    "condition": ("condition", Condition.load),
    "task": (
        "task.safetensors",
        lambda path: AdaptedTask.from_pretrained(path.parent, MetaLearner(network(), adapter=None)),
    ),
    "learner": ("learner.json", lambda path: MetaLearner.from_pretrained(path.parent, backbone=network())),
}
PLACES = {"a pipe": os.mkfifo, "a device": lambda path: path.symlink_to("/dev/zero"), "a folder": os.mkdir}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused(reader, make, tmp_path):
    name, read = READERS[reader]
    make(tmp_path / name)
    with pytest.raises(ValueError, match="not a regular file|irectory") as error:
        read(tmp_path / name)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_text_has_a_largest_size(tmp_path):
    (tmp_path / "text").write_text("a")
    assert read_text(tmp_path / "text") == "a"
    os.truncate(tmp_path / "text", LARGEST_TEXT + 1)
    with pytest.raises(OSError, match="67,108,865 bytes, expected at most 67,108,864"):
        read_text(tmp_path / "text")
