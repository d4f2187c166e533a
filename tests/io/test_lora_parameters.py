"""LoRA of experts, routers and attention in PEFT's folders: what it wrote is read, and what we write it loads."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from metalora import AdapterConfig, convert_loras, detach
from metalora.io.lora.import_ import load_lora
from support.adapters import assert_close, attach_random
from support.holders import HOLDERS, IN, Mixture, Router

# PEFT reads the patterns of parameters, and warns that it does not.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")


class Net(nn.Module):
    """A layer, two blocks of experts, and attention."""

    def __init__(self, is_transposed=False):
        super().__init__()
        self.fc = nn.Linear(IN, IN)
        self.blocks = nn.ModuleList(Mixture(is_transposed) for _ in range(2))
        self.attention = nn.MultiheadAttention(IN, 2, batch_first=True)

    def forward(self, x):
        x = self.fc(x)
        for block in self.blocks:
            x = block(x)
        return self.attention(x, x, x)[0]


def net(is_transposed=False):
    torch.manual_seed(0)
    return Net(is_transposed).double().eval()


X = torch.randn(2, 5, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = ("fc", "experts.gate_up_proj", "experts.down_proj", "gate.weight", "in_proj_weight")
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]


@pytest.mark.parametrize("is_transposed", (False, True))
def test_a_folder_of_peft_is_read(is_transposed, tmp_path):
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["fc", "attention"], target_parameters=PARAMETERS, init_lora_weights=False,
        rank_pattern={"blocks.1.experts.down_proj": 2}, use_rslora=True,
    )  # fmt: skip
    theirs = get_peft_model(net(is_transposed), config).double().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
            if "out_proj.lora_B" in name:  # PEFT adds it twice
                parameter.zero_()
    theirs.save_pretrained(tmp_path)
    model = net(is_transposed)
    adapter = load_lora(model, tmp_path)
    assert len(adapter.targets) == 2 + 2 * 7 and adapter.layers["blocks.1.experts.down_proj.2"].form.rank == 2
    with torch.no_grad():
        want = theirs(X)
        assert (want - net(is_transposed)(X)).abs().max() > 1e-2
        assert_close(model(X), want, 1e-6)  # the import is in float32
    adapter.export_lora(tmp_path / "again")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}


@pytest.mark.parametrize("is_transposed", (False, True))
@pytest.mark.parametrize("method, rank", (("lora", 2), ("metatt-4d", 2), ("lotr", 2), ("quanta", 8)))
def test_peft_loads_the_exported_folder(method, rank, is_transposed, tmp_path):
    model = net(is_transposed)
    targets = TARGETS if method in ("lora", "quanta") else TARGETS[1:4]  # the others number the layers
    adapter = attach_random(model, AdapterConfig(method, rank, targets=targets, clip_rank=True), 0.3)
    with torch.no_grad():
        want = model(X)
    [report] = adapter.export_lora(tmp_path / "lora")
    assert report.error == 0 and report.ranks.keys() == adapter.targets.keys()
    detach(model)
    loaded = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    with torch.no_grad():
        assert_close(loaded(X), want)


ALONE = {"some experts": ("blocks.0.experts.down_proj.1",), "in_proj": ("in_proj_weight",)}


@pytest.mark.parametrize("targets", ALONE.values(), ids=ALONE)
def test_what_peft_adapts_in_addition_is_zero(targets, tmp_path):
    model = net()
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=targets), 0.3)
    with torch.no_grad():
        want = model(X)
    adapter.export_lora(tmp_path / "lora")
    detach(model)
    with torch.no_grad():
        assert_close(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora").eval()(X), want)
    load_lora(model, tmp_path / "lora")
    with torch.no_grad():
        assert_close(model(X), want, 1e-6)


def test_peft_adds_the_update_of_out_proj_twice(tmp_path):
    """The reason why it is neither written nor read; if this fails, PEFT has mended it."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["attention"], init_lora_weights=False)
    theirs = get_peft_model(net(), config).double().eval()
    theirs.save_pretrained(tmp_path)
    dense, attention = net(), theirs.base_model.model.attention
    with torch.no_grad():
        dense.attention.in_proj_weight += attention.get_delta_weight("default")
        dense.attention.out_proj.weight += 2 * attention.base_layer.out_proj.get_delta_weight("default")
        assert_close(theirs(X), dense(X))
    with pytest.raises(ValueError, match="'attention.out_proj' is the output of an nn.MultiheadAttention"):
        load_lora(net(), tmp_path)


def test_a_lora_of_experts_becomes_a_shared_network(tmp_path):
    model = net()
    adapter = attach_random(model, AdapterConfig("lora", 1, targets="experts.down_proj"), 0.3)
    deltas = {path: adapter.delta(path) for path in adapter.targets}
    adapter.export_lora(tmp_path / "lora")
    detach(model)
    converted, _ = convert_loras(model, [tmp_path / "lora"], AdapterConfig("lotr", 6, clip_rank=True))
    for path, delta in deltas.items():
        assert_close(converted.delta(path), delta, 1e-5)


REFUSED = {
    "a magnitude": (net, "dora", "experts.down_proj", "has a magnitude"),
    "the output of attention": (net, "lora", "out_proj", "whose update PEFT adds twice; merge it instead"),
    "an encoder layer": (HOLDERS["encoder"].base, "lora", "linear1", "nn.TransformerEncoderLayer, which ignores PEFT"),
    "attention of an encoder layer": (HOLDERS["encoder"].base, "lora", "in_proj_weight", "which ignores PEFT's LoRA"),
    "separate projections": (HOLDERS["attention-separate"].base, "lora", "q_proj_weight", "three separate projections"),
    "a list": (HOLDERS["listed"].base, "lora", "matrices", "is in an nn.ParameterList"),
    "the end of another path": (
        lambda: nn.ModuleDict({"gate": Router(), "block": nn.ModuleDict({"gate": Router()})}),
        "lora",
        "gate.*",
        "cannot be told from 'block.gate.weight' by PEFT",
    ),
}


@pytest.mark.parametrize("make, method, targets, message", REFUSED.values(), ids=REFUSED)
def test_what_peft_cannot_repeat_is_not_exported(make, method, targets, message, tmp_path):
    adapter = attach_random(make(), AdapterConfig(method, 1, targets=targets))
    with pytest.raises(ValueError, match=message):
        adapter.export_lora(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_a_runtime_without_parameters_is_refused(tmp_path):
    adapter = attach_random(net(), AdapterConfig("lora", 1, targets="experts.down_proj"))
    with pytest.raises(ValueError, match="vllm has no LoRA for target 'blocks.0.experts.down_proj.0', a matrix"):
        adapter.export_lora(tmp_path / "lora", runtime="vllm")


def test_a_damaged_folder_is_refused(tmp_path):
    model = net()
    attach_random(model, AdapterConfig("lora", 2, targets=PARAMETERS)).export_lora(tmp_path / "lora")
    detach(model)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**config, "target_parameters": "experts"}))
    with pytest.raises(ValueError, match="target_parameters is 'experts', expected a list of names"):
        load_lora(model, tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.blocks.0.experts.lora_A.weight"
    save_file({**tensors, name: tensors[name][1:].clone()}, file)
    with pytest.raises(ValueError, match="'blocks.0.experts' has lora_A"):
        load_lora(model, tmp_path / "lora")
