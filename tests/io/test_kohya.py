"""Files of kohya and LyCORIS: written and read again exactly, and run by LyCORIS itself as by this library."""

import json

import pytest
import torch
from lycoris import create_lycoris, create_lycoris_from_weights
from lycoris.wrapper import LycorisNetwork
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import metalora
from metalora import AdapterConfig, ConditionConfig
from metalora.io.lora.export_kohya import export_kohya
from metalora.io.lora.import_ import load_lora, read_any_lora
from support.command import check_command, metalora_command, write_resnet_adapter


class Unet(nn.Module):
    """Names as those of a UNet of diffusers, and the kinds of layers that it has."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 12, 3, padding=1)
        attention = nn.ModuleDict({"to_q": nn.Linear(12, 12), "to_out": nn.ModuleList([nn.Linear(12, 24)])})
        self.down_blocks = nn.ModuleList([nn.ModuleDict({"attentions": nn.ModuleList([attention])})])
        self.mid_block = nn.ModuleDict({"proj_in": nn.Conv2d(24, 8, 1), "line": nn.Conv1d(8, 8, 3)})

    def forward(self, x):
        h = self.conv_in(x).movedim(1, -1)
        attention = self.down_blocks[0]["attentions"][0]
        h = attention["to_out"][0](attention["to_q"](h).tanh()).movedim(-1, 1)
        return self.mid_block["line"](self.mid_block["proj_in"](h).flatten(2))


PATHS = {
    "conv_in": "conv_in",
    "down_blocks_0_attentions_0_to_q": "down_blocks.0.attentions.0.to_q",
    "down_blocks_0_attentions_0_to_out_0": "down_blocks.0.attentions.0.to_out.0",
    "mid_block_proj_in": "mid_block.proj_in",
    "mid_block_line": "mid_block.line",
}
X = torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def unet():
    torch.manual_seed(1)
    return Unet().eval()


def trained(method, **options):
    model = unet()
    adapter = metalora.attach(model, AdapterConfig(method, **{"rank": 2, "targets": tuple(PATHS.values())} | options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model, adapter


WRITTEN = {  # method -> algorithm, suffixes of conv_in and of to_q, options
    "lora": ("locon", "alpha lora_down.weight lora_up.weight", "alpha lora_down.weight lora_up.weight", {"alpha": 3.0}),
    "locon-tucker": ("locon", "alpha lora_down.weight lora_up.weight", "alpha lora_down.weight lora_up.weight", {}),
    "vera": ("locon", "alpha lora_down.weight lora_up.weight", "alpha lora_down.weight lora_up.weight", {}),
    "loha": (
        "loha", "alpha hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "alpha hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        {"alpha": 3.0},
    ),
    "loha-tucker": (
        "loha", "alpha hada_t1 hada_t2 hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        "alpha lora_down.weight lora_up.weight", {"alpha": 1.0},
    ),
    "lokr": (
        "lokr", "alpha lokr_w1 lokr_w2_a lokr_w2_b", "alpha lokr_w1 lokr_w2_a lokr_w2_b", {"alpha": 3.0, "rank": 1},
    ),
    "lokr-full": ("lokr", "alpha lokr_w1 lokr_w2", "alpha lokr_w1 lokr_w2", {"alpha": 0.5}),
    "lokr-tucker": ("lokr", "alpha lokr_w1 lokr_w2", "alpha lora_down.weight lora_up.weight", {"alpha": 3.0}),
}  # fmt: skip


def test_a_lokr_of_a_high_rank_is_written_in_full(tmp_path):
    """LyCORIS's loader expects a full second factor from half of its longer side on; conv_in has 2 x 4 there."""
    model, adapter = trained("lokr", targets=("conv_in",))
    export_kohya(adapter, tmp_path / "file.safetensors", prefix="lycoris")
    assert "lycoris_conv_in.lokr_w2" in load_file(tmp_path / "file.safetensors")
    theirs = unet()
    network, _ = create_lycoris_from_weights(1.0, tmp_path / "file.safetensors", theirs)
    network.apply_to()
    with torch.no_grad():
        torch.testing.assert_close(theirs(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", WRITTEN)
def test_written_read_again_and_run_by_lycoris(method, tmp_path):
    algorithm, of_conv, of_linear, options = WRITTEN[method]
    model, adapter = trained(method, **options)
    path = tmp_path / "file.safetensors"
    written = export_kohya(adapter, path, prefix="lycoris")
    assert written.algorithm == algorithm and {*written.ranks} == {*PATHS.values()}
    tensors = load_file(path)
    for name, suffixes in (("conv_in", of_conv), ("down_blocks_0_attentions_0_to_q", of_linear)):
        assert (
            sorted(key.partition(".")[2] for key in tensors if key.startswith(f"lycoris_{name}.")) == suffixes.split()
        )
    with torch.no_grad():
        want = model(X)
        assert (want - unet()(X)).abs().max() > 0.01
        again = unet()
        load_lora(again, path)
        torch.testing.assert_close(again(X), want, rtol=1e-4, atol=1e-5)
        theirs = unet()
        network, _ = create_lycoris_from_weights(1.0, path, theirs)
        assert len(network.loras) == len(PATHS)
        network.apply_to()
        torch.testing.assert_close(theirs(X), want, rtol=1e-4, atol=1e-5)


def test_a_lora_comes_back_bit_for_bit(tmp_path):
    _, adapter = trained("lora", alpha=3.0)
    export_kohya(adapter, tmp_path / "file.safetensors")
    read = read_any_lora(unet(), tmp_path / "file.safetensors")
    for path, update in metalora.low_rank_updates(adapter).items():
        assert torch.equal(read[path].down, update.down) and torch.equal(read[path].up, update.up)


@pytest.mark.parametrize("prefix", ("lora_unet", "lora_te"))
def test_names_and_header_are_those_of_kohya(prefix, tmp_path):
    _, adapter = trained("loha")
    export_kohya(adapter, tmp_path / "file.safetensors", prefix=prefix, dtype=torch.float16)
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        header = file.metadata()
        assert {key.split(".")[0] for key in file.keys()} == {f"{prefix}_{name}" for name in PATHS}
        assert {file.get_tensor(key).dtype for key in file.keys() if "hada" in key} == {torch.float16}
    assert header["ss_network_module"] == "lycoris.kohya" and header["ss_network_dim"] == "2"
    assert json.loads(header["ss_network_args"]) == {"algo": "loha"}


OF_LYCORIS = {
    "locon": {"algo": "locon", "linear_alpha": 2.0},
    "loha": {"algo": "loha"},
    "loha, cores": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr"},
    "lokr, both decomposed": {"algo": "lokr", "decompose_both": True, "factor": 3},
    "lokr, a full factor": {"algo": "lokr", "full_matrix": True},
    "lokr, a core": {"algo": "lokr", "use_tucker": True},
}


@pytest.mark.parametrize("options", OF_LYCORIS.values(), ids=OF_LYCORIS)
def test_files_of_lycoris(options, tmp_path):
    LycorisNetwork.apply_preset({"target_module": ["Unet"], "target_name": []})
    model = unet()
    network = create_lycoris(model, 1.0, **{"linear_dim": 1, "conv_dim": 1, "linear_alpha": 1.0} | options)
    network.apply_to()  # before it the network has no parameters
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.8)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "file.safetensors")
    with torch.no_grad():
        want = model(X)
        again = unet()
        adapter = load_lora(again, tmp_path / "file.safetensors")
        assert {*adapter.targets} == {*PATHS.values()} and (want - unet()(X)).abs().max() > 0.01
        torch.testing.assert_close(again(X), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


CONDITION = ConditionConfig(source="tensor", feature_size=7, hidden=6)


def test_a_snapshot_and_a_task(tmp_path):
    _, adapter = trained("metalora-cp", condition=CONDITION)
    condition = adapter.condition(torch.randn(1, 7))
    export_kohya(adapter, tmp_path / "file.safetensors", condition)
    read = read_any_lora(unet(), tmp_path / "file.safetensors")
    for path in adapter.targets:
        dense = torch.tensordot(read[path].up, read[path].down, 1)
        torch.testing.assert_close(dense, adapter.delta(path, condition).detach(), rtol=1e-4, atol=1e-5)


def two_with_one_name():
    model = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    return metalora.attach(model, AdapterConfig("lora", 2, targets=("a_b", "a.b")))


REFUSED = {
    "no condition": (lambda: trained("metalora-cp", condition=CONDITION)[1], {}, "pass condition="),
    "magnitudes": (lambda: trained("dora")[1], {}, "dora has magnitudes"),
    "unequal ranks": (lambda: trained("loha", rank={"r1": 2, "r2": 1})[1], {}, r"ranks \[1, 2\]"),
    "an unknown prefix": (lambda: trained("lora")[1], {"prefix": "lora_unett"}, "prefix 'lora_unett'.*'lora_unet'"),
    "one name": (two_with_one_name, {}, "have one name in the file, 'lora_unet_a_b'"),
    "an embedding": (
        lambda: metalora.attach(nn.Sequential(nn.Embedding(5, 4)), AdapterConfig("lora", 2, targets="0")),
        {}, "'0' is of kind embedding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("build, options, message", REFUSED.values(), ids=REFUSED)
def test_refusals(build, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_kohya(build(), tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


DAMAGED = {
    "no half of LoHa": ({"hada_w1_a": (12, 2)}, "has no hada_w1_b"),
    "no half of LoKr": ({"lokr_w1": (3, 3), "lokr_w2_a": (4, 2)}, "has neither lokr_w2 nor both"),
    "two algorithms": ({"lokr_w1": (3, 3), "lora_up.weight": (12, 2)}, "lora_up.weight next to lokr_w1"),
    "other ranks": (
        {"hada_w1_a": (12, 2), "hada_w1_b": (3, 12), "hada_w2_a": (12, 2), "hada_w2_b": (2, 12)}, "has hada_w1_a",
    ),
    "other widths": (
        {"hada_w1_a": (12, 2), "hada_w1_b": (2, 12), "hada_w2_a": (12, 2), "hada_w2_b": (2, 11)}, "factors of 12 x 12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shapes, message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(shapes, message, tmp_path):
    name = "lora_unet_down_blocks_0_attentions_0_to_q"
    save_file({f"{name}.{key}": torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=message):
        load_lora(unet(), tmp_path / "file.safetensors")


# ---- the command ----------------------------------------------------------------------------------------------------
def test_the_command(tmp_path):
    write_resnet_adapter(tmp_path)
    model = f"timm:resnet10t@{tmp_path}/resnet.safetensors"
    out = tmp_path / "kohya.safetensors"
    code, text, err = metalora_command(
        "export", tmp_path / "adapter.safetensors", "--to", "kohya", "--out", out, "--model", model, "--json"
    )
    assert code == 0, err
    shown = json.loads(text)
    assert shown["ranks"] == {"layer1.0.conv1": 2} and shown["bytes"] == out.stat().st_size
    code, _, err = metalora_command("import", out, "--model", model, "--out", tmp_path / "again.safetensors")
    assert code == 0, err
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("adapter", "again"))
    for name in ("A", "B"):
        torch.testing.assert_close(after[f"factors/layer1.0.conv1.{name}"], before[f"factors/layer1.0.conv1.{name}"])


MISTAKES = {
    "--to kohya --all-tasks": "takes no --all-tasks",
    "--to kohya --max-rank 2": "takes no --all-tasks, --max-rank",
    "--to lora --prefix lora_te": "--prefix, --store and --overwrite are for --to kohya",
    "--to lora --store float16": "--prefix, --store and --overwrite are for --to kohya",
}


@pytest.mark.parametrize("options, message", MISTAKES.items())
def test_mistakes_of_the_command(options, message, tmp_path):
    arguments = f"export {{}}/adapter.safetensors --model timm:resnet10t --out {{}}/m {options}"
    check_command(metalora_command, "metalora", arguments, 2, message, tmp_path)
