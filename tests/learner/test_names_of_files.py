"""No folder of a learner, of a task or of a fine-tuned network has anything downloaded, or code of it run."""

import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from metalora.io.transformers_folder import load_base
from metalora.learner import AdaptedTask, FineTuned, MetaLearner
from metalora.learner.backbone import check_no_download
from metalora.learner.data.text_preprocessing import load_tokenizer
from metalora.zoo import load_model, sentence_encoder


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def rename(path, *parts):
    """Write a name into the description of a folder, without the checksum, as earlier versions wrote it."""
    description = json.loads(path.read_text())
    description.pop("sha256", None)
    place = description
    for part in parts[:-2]:
        place = place[part]
    place[parts[-2]] = parts[-1]
    path.write_text(json.dumps(description))


NAMES = (
    "timm:resnet18",
    "resnet18",
    "hf:no/such",
    "st:no/such",
    "torchvision:resnet18",
    "timm:hf-hub:a/b@c",
    "run:RUN.yaml",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_may_be_downloaded(name):
    with pytest.raises(
        ValueError, match="FOLDER: its backbone '.*' may be downloaded: pass backbone=..., or allow_dow"
    ):
        check_no_download(name, "FOLDER")


@pytest.mark.parametrize("name", (None, "minilm", "efficientnet-lite0", "timm:resnet18@weights.pth", "hf:.", "st:/"))
def test_what_is_here_is_read(name):
    check_no_download(name, "FOLDER")


@pytest.fixture
def loaded(monkeypatch):
    """The names that were loaded."""
    names = []
    monkeypatch.setattr("metalora.learner.backbone._load_by_name", lambda name: (names.append(name) or network(), None))
    return names


def test_a_learner_and_its_task(tmp_path, loaded):
    learner = MetaLearner(network(), adapter=None)
    learner.backbone.name = "timm:resnet18"
    learner.save_pretrained(tmp_path / "learner")
    learner.adapt(torch.randn(8, 4), ["a", "b"] * 4).save_pretrained(tmp_path / "task")
    for load in (
        lambda **options: MetaLearner.from_pretrained(tmp_path / "learner", **options),
        lambda **options: AdaptedTask.from_pretrained(tmp_path / "task", **options),
    ):
        with pytest.raises(ValueError, match="its backbone 'timm:resnet18' may be downloaded"):
            load()
        assert not loaded
        load(allow_download=True)
        assert loaded.pop() == "timm:resnet18"
    MetaLearner.from_pretrained(tmp_path / "learner", backbone=network())
    assert not loaded


def test_the_learner_of_a_task_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learner = MetaLearner(network(), adapter=None)
    learner.save_pretrained("learner")
    learner.adapt(torch.randn(8, 4), ["a", "b"] * 4).save_pretrained("task")
    (tmp_path / "learner" / "learner.json").unlink()
    (tmp_path / "learner").rename(tmp_path / "elsewhere")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked.append)
    with pytest.raises(ValueError, match="not the folder of a learner"):
        AdaptedTask.from_pretrained("task")
    assert not asked


CODE = "open({!r}, 'w')\n"


@pytest.fixture
def folder_with_code(tmp_path):
    """A folder of transformers whose classes are code in it, which leaves a file if it is run."""
    torch.manual_seed(0)
    sizes = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=8)
    BertModel(sizes).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text(CODE.format(str(tmp_path / "RUN")))
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    rename(tmp_path / "config.json", "auto_map", classes)
    rename(tmp_path / "config.json", "model_type", "nothing-known")
    rename(tmp_path / "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["code.Tokenizer", None]})
    rename(tmp_path / "tokenizer_config.json", "tokenizer_class", "NothingKnown")
    return tmp_path


READERS = {
    "a model": lambda folder: load_model(f"hf:{folder}"),
    "its sizes": lambda folder: load_model(f"hf:{folder}", weights=False),
    "a tokenizer": load_tokenizer,
    "a base": lambda folder: load_base(str(folder), "BertModel"),
}


@pytest.mark.parametrize("case", READERS)
def test_code_in_a_folder_is_not_run(case, folder_with_code, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    try:
        READERS[case](folder_with_code)
    except ValueError as error:
        assert str(folder_with_code) in str(error)
    assert not (folder_with_code / "RUN").exists()


BASES = {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "somebody/model"}}


@pytest.mark.parametrize("case", ("a model", "a base"))
def test_a_folder_that_names_a_base_on_the_hub_asks_for_nothing(case, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **_: asked.append(arguments))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name, values in BASES.items():
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"model hf:{tmp_path}: "):
        READERS[case](tmp_path)
    assert not asked


def test_a_part_of_a_sentence_encoder_is_a_folder_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "modules.json").write_text('[{"path": "model", "type": "a.Transformer"}]')
    with pytest.raises(ValueError, match="model 'encoder': no folder 'model' in it, which modules.json names"):
        sentence_encoder("encoder")


@pytest.mark.parametrize("kind", ("pipeline", "AutoTokenizer", "BertTokenizer", "logging", "NoSuchModel", "__name__"))
def test_the_class_of_a_base_is_one_of_models(kind, tmp_path):
    with pytest.raises(ValueError, match=f"the adapter's base is a '{kind}', which is not a class of models"):
        load_base(str(tmp_path), kind)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_with_code_is_not_run(tmp_path):
    torch.save({"state_dict": Code(str(tmp_path / "RUN"))}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="model timm:test_vit@.*: no weights"):
        load_model(f"timm:test_vit@{tmp_path / 'weights.pth'}")
    assert not (tmp_path / "RUN").exists()


def test_a_fine_tuned_network(tmp_path, loaded):
    from metalora.learner import finetune

    tuned = finetune(network(), torch.randn(24, 4), ["a", "b"] * 12, "head")
    tuned.save_pretrained(tmp_path / "tuned")
    tuned.backbone.name = "timm:resnet18"
    tuned.save_pretrained(tmp_path / "named")
    with pytest.raises(ValueError, match="its backbone 'timm:resnet18' may be downloaded"):
        FineTuned.from_pretrained(tmp_path / "named")
    FineTuned.from_pretrained(tmp_path / "named", backbone=network())
    assert not loaded
    FineTuned.from_pretrained(tmp_path / "named", allow_download=True)
    assert loaded == ["timm:resnet18"]
