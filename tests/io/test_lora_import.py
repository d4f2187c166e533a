"""LoRAs of PEFT and LoCon files as adapters: the same outputs as the libraries that made them."""

import pytest
import torch
from lycoris import create_lycoris
from lycoris.wrapper import LycorisNetwork
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2Model

import metalora
from metalora.io.lora.import_ import load_lora


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.mid_block = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1), "line": nn.Conv1d(8, 8, 3)})
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        h = self.mid_block["conv"](self.conv(x).relu()).flatten(2)
        return self.out(self.mid_block["line"](h).mean(-1))


def net():
    torch.manual_seed(1)
    return Net().eval()


X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_peft_folder_with_unequal_ranks(tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["conv", "out", "line"], rank_pattern={"mid_block.conv": 2},
        alpha_pattern={"out": 3}, init_lora_weights=False, use_rslora=True,
    )  # fmt: skip
    theirs = get_peft_model(net(), config).eval()
    theirs.save_pretrained(tmp_path)
    model = net()
    adapter = load_lora(model, tmp_path)
    assert adapter.layers["mid_block.conv"].form.rank == 2 and adapter.layers["conv"].form.rank == 4
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-5, atol=1e-5)
    metalora.save(model, tmp_path / "own.safetensors")
    again = net()
    metalora.load(again, tmp_path / "own.safetensors")
    assert torch.equal(again(X), model(X))


def test_peft_folder_of_gpt2(tmp_path):
    def gpt():
        torch.manual_seed(1)
        return GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16)).eval()

    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    theirs = get_peft_model(gpt(), config).eval()
    theirs.save_pretrained(tmp_path)
    model = gpt()
    load_lora(model, tmp_path)
    ids = torch.arange(5)[None]
    torch.testing.assert_close(model(ids)[0], theirs(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.fixture
def locon(tmp_path):
    """A LoCon file of LyCORIS with a Tucker core, and the outputs of the model that it was made from."""
    LycorisNetwork.apply_preset({"target_module": ["Net"], "target_name": []})
    model = net()
    network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=2.0, conv_dim=3, algo="locon", use_tucker=True)
    network.apply_to()  # before it the network has no parameters
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
        assert (model(X) - net()(X)).abs().max() > 0.01
    path = tmp_path / "locon.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    with torch.no_grad():
        return path, model(X)


def test_lycoris_file(locon):
    path, want = locon
    assert any("lora_mid" in name for name in load_file(path))
    model = net()
    adapter = load_lora(model, path)
    assert set(adapter.targets) == {"conv", "mid_block.conv", "mid_block.line", "out"}
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


def test_kohya_names(locon, tmp_path):
    path, want = locon
    renamed = {name.replace("lycoris_", "lora_unet_", 1): value for name, value in load_file(path).items()}
    save_file(renamed, tmp_path / "kohya.safetensors")
    model = net()
    load_lora(model, tmp_path / "kohya.safetensors")
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


def changed(change):
    def run(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return run


def with_tensor(name, *shape):
    return changed(lambda tensors: tensors.update({name: torch.ones(shape)}))


REFUSALS = {
    "an unknown module": (with_tensor("lycoris_outt.alpha"), "no module 'lycoris_outt'; did you mean 'out'"),
    "another algorithm": (with_tensor("lycoris_out.hada_w1_a", 2), "'lycoris_out' has lora_.* next to hada_w1_a"),
    "an unknown algorithm": (with_tensor("lycoris_out.oft_blocks", 2), "'lycoris_out.oft_blocks' is not a part of"),
    "half a pair": (changed(lambda t: t.pop("lycoris_out.lora_up.weight")), "'lycoris_out' has lora_down alone"),
    "another width": (with_tensor("lycoris_out.lora_down.weight", 4, 9), r"weight of \(5, 9\), .* is \(5, 8\)"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated or damaged"),
    "gone": (lambda path: path.unlink(), "no such file or folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, locon):
    damage, message = REFUSALS[case]
    damage(locon[0])
    model = net()
    with pytest.raises(ValueError, match=message):
        load_lora(model, locon[0])
    assert metalora.adapter_of(model) is None
