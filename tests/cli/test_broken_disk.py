"""A broken disk is one line of the command, exit code 1, and a folder is written whole or not at all."""

import pytest
import torch
from safetensors import SafetensorError
from transformers import BertConfig, BertModel

from metalora import AdapterConfig, attach
from metalora._util.files import errors_for_users
from metalora.cli.render import run_verbs
from metalora.io.transformers_folder import save_merged_folder

ERRORS = {
    "full": (OSError(28, "No space left on device", "/a/rows"), "program: /a/rows: No space left on device", 1),
    "not allowed": (PermissionError(13, "Permission denied", "/a"), "program: /a: Permission denied", 2),
    "without a path": (OSError(30, "Read-only file system"), "program: Read-only file system", 1),
    "without a number": (OSError("the disk is gone"), "program: the disk is gone", 1),
}


@pytest.mark.parametrize("error, line, code", ERRORS.values(), ids=ERRORS)
def test_an_error_of_the_disk_is_one_line(error, line, code, capsys):
    def verb() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_verbs({"verb": verb, "other": verb}, "program", ["verb"], "about")
    assert stop.value.code == code and capsys.readouterr().err == f"{line}\n"


def test_a_full_disk_that_a_message_names_is_no_mistake_of_the_user(tmp_path, capsys):
    def verb() -> None:
        with errors_for_users(tmp_path, "nothing is lost"):
            raise OSError(28, "No space left on device")

    with pytest.raises(SystemExit) as stop:
        run_verbs({"verb": verb, "other": verb}, "program", ["verb"], "about")
    assert stop.value.code == 1 and "No space left on device); nothing is lost" in capsys.readouterr().err


class Tokenizer:
    """A tokenizer whose folder cannot be written, after the weights were."""

    def __init__(self, error):
        self.error = error

    def save_pretrained(self, folder):
        if self.error is not None:
            raise self.error


def adapted_model():
    config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    model = BertModel(config).eval()
    attach(model, AdapterConfig("lora", rank=2, targets=("query",)))
    return model


def broken_weights(model, monkeypatch):
    def fail(*_, **__):
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", fail)


@pytest.mark.parametrize("part", ("tokenizer", "weights"))
def test_a_merged_folder_is_written_whole_or_not_at_all(part, tmp_path, monkeypatch):
    model, folder = adapted_model(), tmp_path / "merged"
    if part == "weights":
        broken_weights(model, monkeypatch)
    tokenizer = Tokenizer(OSError(28, "No space left on device") if part == "tokenizer" else None)
    with pytest.raises(ValueError, match=r"merged: could not be written \(.*No space left on device\)"):
        save_merged_folder(model, folder, tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused_before_the_merge(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = adapted_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="exists already"):
        save_merged_folder(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
