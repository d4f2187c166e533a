"""The command line on folders of transformers and PEFT: imported LoRAs, merged models in shards."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel

import metalora
from support.command import metalora_command


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a tiny BertModel, saved in several shards."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=30)
    sizes |= {"max_position_embeddings": 16}
    folder = tmp_path_factory.mktemp("bert")
    BertModel(BertConfig(**sizes)).save_pretrained(folder, max_shard_size="4KB")
    return folder


def test_an_imported_lora_is_the_one_of_peft(bert, tmp_path):
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["query", "dense"], rank_pattern={"query": 2}, init_lora_weights=False
    )
    theirs = get_peft_model(BertModel.from_pretrained(bert), config).eval()
    theirs.save_pretrained(tmp_path / "peft-lora")
    out = tmp_path / "imported.safetensors"
    code, text, _ = metalora_command("import", tmp_path / "peft-lora", "--model", f"hf:{bert}", "--out", out, "--json")
    shown = json.loads(text)
    assert code == 0 and shown["bytes"] == out.stat().st_size
    assert shown["parameters"] == sum(p.numel() for name, p in theirs.named_parameters() if "lora_" in name)
    assert {path.split(".")[-1]: rank for path, rank in shown["targets"].items()} == {"query": 2, "dense": 3}
    mine = BertModel.from_pretrained(bert)
    metalora.load(mine, out)
    ids = torch.arange(8).reshape(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(mine(ids)[0], theirs(ids)[0], rtol=1e-5, atol=1e-5)


VERBS = {"merge": ("merge",), "lora": ("export", "--to", "lora"), "kohya": ("export", "--to", "kohya")}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_base_with_another_bias_is_refused_unless_the_flag_is_given(verb, bert, tmp_path):
    model = BertModel.from_pretrained(bert)
    model.pooler.dense.bias.data.add_(1)
    adapter = metalora.attach(model, metalora.AdapterConfig("lora", 2, targets="query"))
    for factor in adapter.parameters():
        torch.nn.init.normal_(factor)
    adapter.save(tmp_path / "adapter")
    arguments = (verb[0], tmp_path / "adapter", *verb[1:], "--model", f"hf:{bert}", "--out", tmp_path / "out")
    code, _, err = metalora_command(*arguments)
    assert code == 2 and "other parameters or buffers of the base" in err and not (tmp_path / "out").exists()
    code, _, err = metalora_command(*arguments, "--no-check-base")
    assert code == 0 and (tmp_path / "out").exists(), err


def test_a_merged_folder_has_the_shards_of_its_base(bert, tmp_path):
    def shards(folder):
        return sorted(path.name for path in folder.glob("*.safetensors"))

    model, ids = BertModel.from_pretrained(bert), torch.arange(8).reshape(2, 4)
    adapter = metalora.attach(model, metalora.AdapterConfig("lora", 2, targets="query"))
    for factor in adapter.parameters():
        torch.nn.init.normal_(factor)
    metalora.save(model, tmp_path / "adapter")
    arguments = ("merge", tmp_path / "adapter", "--model", f"hf:{bert}", "--out")
    code, _, err = metalora_command(*arguments, f"{tmp_path}/no/", "--max-shard-size", "much")
    assert code == 2 and "max_shard_size 'much': expected" in err and not (tmp_path / "no").exists()
    for name, options in {"like": (), "whole": ("--max-shard-size", "1GB")}.items():
        assert metalora_command(*arguments, f"{tmp_path / name}/", *options)[0] == 0
        with torch.no_grad():
            plain = BertModel.from_pretrained(tmp_path / name)(ids)[0]
            torch.testing.assert_close(plain, model(ids)[0], rtol=1e-5, atol=1e-5)
    assert len(shards(bert)) > 2 and shards(tmp_path / "like") == shards(bert)
    assert shards(tmp_path / "whole") == ["model.safetensors"]


def test_a_lora_of_another_model_is_not_imported(bert, tmp_path):
    other = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 3)})
    metalora.attach(other, metalora.AdapterConfig("lora", 1, targets="head")).export_lora(tmp_path / "plain")
    code, out, err = metalora_command("import", tmp_path / "plain", "--model", f"hf:{bert}", "--out", tmp_path / "m")
    last = err.splitlines()[-1]  # after the bar of transformers
    assert (code, out) == (2, "") and "Traceback" not in err and not (tmp_path / "m").exists()
    assert last.startswith("metalora: ") and "BertModel has no module 'head'" in last
