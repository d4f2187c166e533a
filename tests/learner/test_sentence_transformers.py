"""Models of sentence-transformers: by folder, by object, and by a folder whose transformer lies in a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalora.learner import MetaLearner, load_backbone
from metalora.zoo import minilm_folder, sentence_encoder

TEXTS = ["a dog barks", "the engine stopped", "a cat sleeps near the river"]


class Transformer(nn.Module):
    """What sentence-transformers calls the first part of a model."""

    def __init__(self, auto_model: nn.Module):
        super().__init__()
        self.auto_model = auto_model


class SentenceTransformer(nn.Sequential):
    """The parts of the class of that name that are read."""

    def __init__(self, auto_model: nn.Module, tokenizer: Any):
        super().__init__(Transformer(auto_model))
        self.tokenizer = tokenizer


@pytest.fixture(scope="module")
def by_folder() -> MetaLearner:
    return MetaLearner(f"st:{minilm_folder()}", adapter=None, max_length=16)


def test_a_folder_is_that_of_the_short_name(by_folder: MetaLearner, tmp_path: Path) -> None:
    short = MetaLearner("minilm", adapter=None, max_length=16)
    assert torch.equal(by_folder.encode(TEXTS), short.encode(TEXTS))
    loaded = MetaLearner.from_pretrained(by_folder.save_pretrained(tmp_path / "learner"))
    assert loaded.backbone.name == by_folder.backbone.name
    assert torch.equal(loaded.encode(TEXTS), short.encode(TEXTS))


def test_a_model_object(by_folder: MetaLearner, tmp_path: Path) -> None:
    class Custom(SentenceTransformer):
        """A subclass, as users write them."""

    for kind in (SentenceTransformer, Custom):
        learner = MetaLearner(kind(*sentence_encoder("minilm")), adapter=None, max_length=16)
        assert learner.backbone.preprocessor.kind == "text"
        assert torch.equal(learner.encode(TEXTS), by_folder.encode(TEXTS))
    learner.save_pretrained(tmp_path / "learner")
    again = MetaLearner.from_pretrained(tmp_path / "learner", backbone=Custom(*sentence_encoder("minilm")))
    assert again.fingerprint == learner.fingerprint
    with pytest.raises(ValueError, match="has no name: pass it as backbone="):
        MetaLearner.from_pretrained(tmp_path / "learner")


def test_a_transformer_in_a_part_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "0_Transformer").symlink_to(minilm_folder())
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert load_backbone(f"st:{tmp_path}").preprocessor.kind == "text"


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none"):
        load_backbone(f"st:{tmp_path / 'none'}")
