"""Learners that are saved once for all tests of the service."""

import pytest

from metalora.learner import MetaLearner
from support.serving import save_image_learner, save_text_learner


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """The folder of a small learner of pictures."""
    return save_image_learner(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """The folder of a small learner of texts."""
    return save_text_learner(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def image_learner(image_folder):
    """A small learner of pictures."""
    return MetaLearner.from_pretrained(image_folder, device="cpu")


@pytest.fixture(scope="session")
def text_learner(text_folder):
    """A small learner of texts."""
    return MetaLearner.from_pretrained(text_folder, device="cpu")
