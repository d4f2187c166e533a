"""`metalora.peft.load` says in one clear error what a folder lacks, or that it is for another base."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertModel

import metalora.peft as mp


def bert(layers=2, seed=1, width=32):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64)
    return BertModel(BertConfig(**sizes, vocab_size=64)).eval()


@pytest.fixture
def saved(tmp_path):
    config = mp.LoTRConfig(r=4, target_modules=["query", "key"], init_weights=False)
    get_peft_model(bert(), config).save_pretrained(tmp_path / "lotr")
    return tmp_path / "lotr"


def test_loads_next_to_another_adapter(saved):
    ids = torch.arange(6).reshape(1, 6)
    model = get_peft_model(bert(), mp.MetaTTConfig(r=2, target_modules=["query"]))
    mp.load(model, saved, "second")
    model.set_adapter("second")
    expected = PeftModel.from_pretrained(bert(), saved).eval()(input_ids=ids)[0]
    assert torch.equal(model.eval()(input_ids=ids)[0], expected)


def test_a_name_by_which_peft_would_drop_factors_of_others_is_refused():
    model = get_peft_model(bert(), mp.LoTRConfig(r=4, target_modules=["query"]))
    with pytest.raises(ValueError, match="adapter name 'owned': a part of the factors' names"):
        model.add_adapter("owned", mp.LoTRConfig(r=4, target_modules=["query"]))


def test_a_pushed_folder_says_how_to_load_it_and_loads(tmp_path, monkeypatch):
    pushed, ids = tmp_path / "pushed", torch.arange(6).reshape(1, 6)

    class Hub:
        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def create_commit(self, operations, **_):
            pushed.mkdir()
            for operation in operations:
                (pushed / operation.path_in_repo).write_bytes(Path(operation.path_or_fileobj).read_bytes())

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    card = ModelCard("---\nlibrary_name: transformers\n---\n\nWhat was there.\n")
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    model = get_peft_model(bert(), mp.LoTRConfig(r=4, target_modules=["query", "key"], init_weights=False)).eval()
    model.push_to_hub("someone/lotr")
    assert {path.name for path in pushed.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    text = (pushed / "README.md").read_text()
    assert "What was there." in text and text.count("metalora.peft.load(") == 1
    assert torch.equal(mp.load(bert(), pushed).eval()(input_ids=ids)[0], model(input_ids=ids)[0])


def without(name):
    return lambda folder: (folder / name).unlink()


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def with_config(change):
    """A damage that changes adapter_config.json."""

    def rewrite(folder):
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return rewrite


def with_placement(change):
    """A damage that changes the saved layout in adapter_config.json."""
    return with_config(lambda config: change(config["placement"]))


DAMAGES = {
    "no config": (without("adapter_config.json"), "no adapter_config.json, expected the folder of a saved adapter"),
    "no tensors": (without("adapter_model.safetensors"), "no adapter_model.safetensors, expected the folder"),
    "truncated": (truncate, "adapter_model.safetensors: truncated or damaged"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: not JSON"),
    "no type": (with_config(lambda c: c.pop("peft_type")), "no peft_type, expected 'METALORA'"),
    "a factor too few": (with_placement(lambda p: p["tensors"].update({"owned.D": [2]})), "'owned.D' is missing"),
    "a factor too many": (with_placement(lambda p: p["tensors"].pop("owned.U")), "'owned.U' is not expected"),
    "another wiring": (with_placement(lambda p: p["factors"].update(U="in a b")), "lotr is wired"),
    "unknown method": (with_config(lambda c: c.update(method="lotrr")), "method 'lotrr'; did you mean 'lotr'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders(case, saved):
    damage, message = DAMAGES[case]
    damage(saved)
    base = bert()
    with pytest.raises(ValueError, match=message):
        mp.load(base, saved)
    assert not hasattr(base, "peft_config") and not hasattr(base, "tensor_bank")


def test_other_bases(saved):
    with pytest.raises(ValueError, match=r"base weights are not those .* check_base=False loads it all the same"):
        mp.load(bert(seed=2), saved)
    assert isinstance(mp.load(bert(seed=2), saved, check_base=False), PeftModel)
    with pytest.raises(ValueError, match=r"made for a BertModel; BertModel has no 'encoder.layer.1"):
        mp.load(bert(layers=1), saved)
    with pytest.raises(ValueError, match=r"a layer 'encoder.layer.1.* which this BertModel does not have"):
        PeftModel.from_pretrained(bert(layers=1), saved)
    with pytest.raises(ValueError, match=r"of sizes \{'in': 32, 'out': 32\}, here it is \{'out': 48, 'in': 48\}"):
        PeftModel.from_pretrained(bert(width=48), saved)
    deeper = PeftModel.from_pretrained(bert(layers=4), saved)  # the layers that it was made for, and no others
    assert {path.split(".")[2] for path in mp.adapter_of(deeper).targets} == {"0", "1"}


def test_not_a_folder_of_ours(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        mp.load(bert(), tmp_path / "none")
    get_peft_model(bert(), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="peft_type is 'LORA', expected 'METALORA'; .*import_.load_lora"):
        mp.load(bert(), tmp_path / "lora")
