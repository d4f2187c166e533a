"""LoRA files in the layouts of other programs: the outputs of PEFT and LyCORIS, in any order of entries."""

import copy
import json
import random
import warnings

import pytest
import torch
from lycoris import create_lycoris
from lycoris.wrapper import LycorisNetwork
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import metalora
from metalora import load_lora
from metalora.io.lora.import_ import read_any_lora
from support.unchanged import unchanged

X = torch.rand(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(6, 8)
        self.to_out = nn.ModuleList([nn.Linear(8, 6)])

    def forward(self, x):
        return self.to_out[0](self.to_q(x).tanh())


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(6, 6, 3, padding=1)
        self.mid_block = nn.ModuleDict({"attentions": nn.ModuleList([Block()])})

    def forward(self, x):
        return self.mid_block["attentions"][0](self.conv_in(x).movedim(1, -1))


def unet():
    torch.manual_seed(1)
    return Unet().eval()


TARGETS = ["conv_in", "to_q", "to_out.0"]
PATHS = {"conv_in", "mid_block.attentions.0.to_q", "mid_block.attentions.0.to_out.0"}


def trained(folder, base=unet, **options):
    """The outputs of a LoRA of PEFT that is saved in a folder, on a base that nothing has changed."""
    torch.manual_seed(2)
    config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": TARGETS, "init_lora_weights": False} | options)
    model = get_peft_model(base(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.rand_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(base(), folder).eval()(X).detach()


def check(path, want, base=unet, method="lora", **options):
    model = base()
    adapter = load_lora(model, path, **options)
    assert adapter.method.name == method and {*adapter.targets} == PATHS
    assert (want - base()(X)).abs().max() > 0.01
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


# ---- names of other programs ----------------------------------------------------------------------------------------
def renamed(folder, module, down, up, alpha=None):
    """The tensors of a folder of PEFT with a scale of 3 / 2 by the names of another program."""
    tensors = {}
    for name, value in load_file(folder / "adapter_model.safetensors").items():
        path, half, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        tensors[module(path) + (down if half == "lora_A" else up)] = value
        if alpha:
            tensors[module(path) + alpha] = torch.tensor(3.0)
    return tensors


def flat(prefix):
    return lambda path: f"{prefix}_{path.replace('.', '_')}"


def dotted(prefix):
    return lambda path: f"{prefix}{path}"


def processor(path):
    return f"unet.{path}".replace(".to_q", ".processor.to_q_lora").replace(".to_out.0", ".processor.to_out_lora")


KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
LAYOUTS = {
    "kohya": (flat("lora_unet"), *KOHYA),
    "kohya, a transformer": (flat("lora_transformer"), *KOHYA),
    "kohya, a text encoder": (flat("lora_te3"), *KOHYA),
    "LyCORIS": (flat("lycoris"), *KOHYA),
    "a prefix of its own": (flat("lora_prior"), *KOHYA),
    "diffusers with PEFT's names": (dotted("unet."), ".lora_A.weight", ".lora_B.weight", ".alpha"),
    "diffusers with its own names": (dotted("unet."), ".lora.down.weight", ".lora.up.weight", ".alpha"),
    "diffusers' linear layers": (
        dotted(""),
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
        ".alpha",
    ),
    "a transformer of diffusers": (dotted("transformer."), ".lora_A.weight", ".lora_B.weight", ".alpha"),
    "ComfyUI": (dotted("diffusion_model."), *KOHYA),
    "ComfyUI with PEFT's names": (dotted("diffusion_model."), ".lora_A.weight", ".lora_B.weight", ".alpha"),
    "the adapter's name": (dotted("unet."), ".lora_A.style.weight", ".lora_B.style.weight", ".alpha"),
    "two prefixes": (dotted("model.diffusion_model."), *KOHYA),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_of_another_program_computes_what_peft_computes(layout, tmp_path):
    want = trained(tmp_path)
    save_file(renamed(tmp_path, *LAYOUTS[layout]), tmp_path / "lora.safetensors")
    check(tmp_path / "lora.safetensors", want)


def test_attention_processors_of_diffusers(tmp_path):
    want = trained(tmp_path, target_modules=["to_q", "to_out.0"])
    tensors = renamed(tmp_path, processor, ".down.weight", ".up.weight")
    save_file({name: v * 1.5 if "up" in name else v for name, v in tensors.items()}, tmp_path / "lora.safetensors")
    model = unet()
    load_lora(model, tmp_path / "lora.safetensors")
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


def test_the_header_of_diffusers_has_the_scale(tmp_path):
    want = trained(tmp_path, alpha_pattern={"to_q": 5})
    tensors = renamed(tmp_path, dotted("unet."), ".lora_A.weight", ".lora_B.weight")
    config = {"unet.r": 2, "unet.lora_alpha": 3, "unet.alpha_pattern": {"to_q": 5}}
    file = tmp_path / "diffusers" / "pytorch_lora_weights.safetensors"
    file.parent.mkdir()
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(config)})
    check(file, want)
    check(tmp_path, want, subfolder="diffusers")
    alphas = {"unet.conv_in.alpha": torch.tensor(3.0), "unet.mid_block.attentions.0.to_q.alpha": torch.tensor(4.0)}
    save_file(tensors | alphas, file, {"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(ValueError, match="0.to_q' has another scale by its alpha than by lora_adapter_metadata"):
        load_lora(unet(), file)
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(config | {"unet.use_later": True})})
    with pytest.raises(ValueError, match="lora_adapter_metadata of unet: use_later is True"):
        load_lora(unet(), file)


def test_files_of_pytorch_are_read_as_weights_alone(tmp_path):
    want = trained(tmp_path / "peft")
    torch.save(load_file(tmp_path / "peft/adapter_model.safetensors"), tmp_path / "peft/adapter_model.bin")
    (tmp_path / "peft/adapter_model.safetensors").rename(tmp_path / "other.safetensors")
    check(tmp_path / "peft", want)
    check(tmp_path, want, subfolder="peft")
    check(tmp_path / "peft/adapter_model.bin", want)


class Code:
    def __reduce__(self):
        return print, ("this must not be printed",)


BAD_PICKLES = {
    "code": (lambda: Code(), "not a file of weights alone"),
    "a list": (lambda: [torch.ones(2)], "a list, expected a mapping of names to tensors"),
    "a text": (lambda: {"a": "b"}, "'a' is no plain tensor"),
    "a sparse tensor": (lambda: {"a": torch.eye(2).to_sparse()}, "'a' is no plain tensor"),
    "a huge view": (lambda: {"a": torch.ones(1).expand(10**9, 10**6)}, "larger than the file"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_a_file_of_pytorch_that_is_refused(case, tmp_path, capsys):
    make, message = BAD_PICKLES[case]
    torch.save(make(), tmp_path / "lora.bin")
    model = unet()
    with unchanged(model), pytest.raises(ValueError, match=message):
        load_lora(model, tmp_path / "lora.bin")
    assert "printed" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", (True, False))
def test_a_file_of_pytorch_that_is_cut_anywhere_is_refused(zipped, tmp_path):
    torch.save({"lora_0.lora_up.weight": torch.ones(8, 2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.bin").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "b.bin").write_bytes(content[:length])
        with pytest.raises(ValueError, match="b.bin: not a file of weights alone"):
            load_lora(unet(), tmp_path / "b.bin")


def test_a_file_of_peft_without_its_configuration_is_refused(tmp_path):
    trained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="is a name of PEFT, and adapter_config.json next to the file has the scale"):
        load_lora(unet(), tmp_path / "adapter_model.safetensors")


def test_several_adapters_in_one_file_are_refused(tmp_path):
    trained(tmp_path)
    tensors = renamed(tmp_path, dotted("unet."), ".lora_A.first.weight", ".lora_B.second.weight")
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="holds several adapters, 'first' and 'second'"):
        load_lora(unet(), tmp_path / "lora.safetensors")


# ---- several networks, and parts of a model -------------------------------------------------------------------------
def both_networks(folder, prefixes=("lora_unet", "lora_te"), name=flat):
    """A file with a LoRA of a UNet and, three times as large, of a text encoder; their names and outputs."""
    wants = [trained(folder / "unet"), trained(folder / "te", lora_alpha=9)]
    tensors = renamed(folder / "unet", name(prefixes[0]), *KOHYA)
    tensors |= {
        key: value * 3 if key.endswith("alpha") else value
        for key, value in renamed(folder / "te", name(prefixes[1]), *KOHYA).items()
    }
    save_file(tensors, folder / "both.safetensors")
    return folder / "both.safetensors", wants


@pytest.mark.parametrize(
    "prefixes, name, networks",
    [
        (("lora_unet", "lora_te"), flat, ("lora_unet", "lora_te")),
        (("lora_unet", "lora_te1"), flat, ("lora_unet", "lora_te1")),
        (("unet.", "text_encoder."), dotted, ("unet", "text_encoder")),
    ],
)
def test_one_network_of_a_file_or_all_in_one_model(prefixes, name, networks, tmp_path):
    path, wants = both_networks(tmp_path, prefixes, name)
    for network, want in zip(networks, wants, strict=True):
        check(path, want, network=network)
    with pytest.raises(ValueError, match=f"network='{min(networks)}' or '{max(networks)}'"):
        load_lora(unet(), path)
    whole = nn.ModuleDict({"unet": unet(), "text_encoder": unet()})
    load_lora(whole, path)
    for child, want in zip(whole.values(), wants, strict=True):
        torch.testing.assert_close(child(X), want, rtol=1e-5, atol=1e-5)


def test_an_unknown_network_is_refused_with_those_of_the_file(tmp_path):
    path, _ = both_networks(tmp_path)
    with pytest.raises(ValueError, match=r"has no network 'unet'.*\(known: lora_te, lora_unet\)"):
        load_lora(unet(), path, network="unet")


def test_equal_ends_in_two_towers_are_refused_with_both_names_or_chosen(tmp_path):
    towers = nn.ModuleDict({"decoder": unet(), "encoder": unet()})
    torch.manual_seed(3)
    theirs = get_peft_model(towers, LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    model = unet()
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"'mid_block.attentions.0.to_q', by the names 'decoder.* and 'encoder.*"),
    ):
        load_lora(model, tmp_path)
    for tower in ("decoder", "encoder"):
        model = unet()
        adapter = load_lora(model, tmp_path, network=tower)
        layer = theirs.base_model.model[tower].mid_block["attentions"][0].to_q
        torch.testing.assert_close(adapter.delta("mid_block.attentions.0.to_q"), layer.get_delta_weight("default"))


def test_a_part_of_the_path_that_this_model_does_not_have_is_cut(tmp_path):
    want = trained(tmp_path, target_modules=["to_q", "to_out.0"])
    save_file(renamed(tmp_path, flat("lora_te_text_model"), *KOHYA), tmp_path / "lora.safetensors")
    model = unet()
    load_lora(model, tmp_path / "lora.safetensors")
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


def test_two_paths_with_one_flattened_name_are_refused_with_both(tmp_path):
    model = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    save_file({"lora_unet_a_b.lora_down.weight": torch.ones(1, 4), "lora_unet_a_b.lora_up.weight": torch.ones(4, 1)},
              tmp_path / "lora.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="has 2 modules 'lora_unet_a_b': a_b, a.b"):
        load_lora(model, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_the_entries_means_nothing(layout, tmp_path, monkeypatch):
    trained(tmp_path)
    tensors = renamed(tmp_path, *LAYOUTS[layout])
    first = None
    for seed in range(20):
        names = [*tensors]
        random.Random(seed).shuffle(names)
        shuffled = {name: tensors[name] for name in names}
        monkeypatch.setattr("metalora.io.lora.source.read_tensors", lambda *_, values=shuffled: values)
        monkeypatch.setattr("metalora.io.lora.source.read_metadata", lambda _: {})
        updates = read_any_lora(unet(), tmp_path / "adapter_config.json")
        first = first or updates
        assert list(updates) == list(first)
        for path, update in updates.items():
            assert torch.equal(update.down, first[path].down) and torch.equal(update.up, first[path].up)


# ---- more than a plain LoRA -----------------------------------------------------------------------------------------
def test_a_dora_of_peft(tmp_path):
    check(tmp_path, trained(tmp_path, use_dora=True), method="dora")


@pytest.mark.parametrize("algorithm", ("locon", "loha", "lokr"))
def test_a_dora_of_lycoris(algorithm, tmp_path):
    LycorisNetwork.apply_preset({"target_module": ["Unet"], "target_name": []})
    model = unet()
    network = create_lycoris(model, 1.0, linear_dim=2, conv_dim=2, linear_alpha=1.0, algo=algorithm, dora_wd=True)
    network.apply_to()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            change = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(parameter * 1.5 if "dora_scale" in name else change)
        want = model(X)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    assert any(name.endswith("dora_scale") for name in tensors)
    check(tmp_path / "lora.safetensors", want, method="dora")
    with pytest.raises(ValueError, match="a DoRA, which also rescales the columns of the weight"):
        read_any_lora(unet(), tmp_path / "lora.safetensors")


PEFT_LYCORIS = {
    "LoHa": (LoHaConfig, {}),
    "LoHa, ranks by pattern": (LoHaConfig, {"rank_pattern": {"to_q": 1}, "alpha_pattern": {"to_q": 5}}),
    "LoHa, cores": (LoHaConfig, {"use_effective_conv2d": True}),
    "LoKr": (LoKrConfig, {}),
    "LoKr, both decomposed": (LoKrConfig, {"decompose_both": True, "decompose_factor": 3, "r": 1}),
    "LoKr, full factors": (LoKrConfig, {"r": 50}),
    "LoKr, cores": (LoKrConfig, {"use_effective_conv2d": True, "r": 1}),
}


@pytest.mark.parametrize("case", PEFT_LYCORIS)
def test_a_loha_or_lokr_of_peft(case, tmp_path):
    config_class, options = PEFT_LYCORIS[case]
    torch.manual_seed(2)
    theirs = get_peft_model(unet(), config_class(**{"r": 2, "alpha": 3, "target_modules": TARGETS} | options)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "hada_" in name or "lokr_" in name:
                parameter.normal_(0, 0.5)
    theirs.save_pretrained(tmp_path)
    model = unet()
    adapter = load_lora(model, tmp_path)
    assert {*adapter.targets} == PATHS and (theirs(X) - unet()(X)).abs().max() > 0.01
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"later": 1}))
    with pytest.raises(ValueError, match="later is 1: this version does not know"):
        load_lora(unet(), tmp_path)


def test_magnitudes_of_the_inputs_are_refused(tmp_path):
    tensors = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 6, 3, 3), "lora_unet_conv_in.dora_scale":
               torch.ones(1, 6, 1, 1), "lora_unet_conv_in.lora_up.weight": torch.ones(6, 1, 1, 1)}  # fmt: skip
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="dora_scale of shape .*, expected one magnitude for each of 6 outputs"):
        load_lora(unet(), tmp_path / "lora.safetensors")


def test_a_file_where_only_some_modules_are_dora_is_refused(tmp_path):
    trained(tmp_path)
    tensors = renamed(tmp_path, *LAYOUTS["kohya"])
    save_file(tensors | {"lora_unet_conv_in.dora_scale": torch.ones(6, 1, 1, 1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="'conv_in' has magnitudes .DoRA. and 'mid_block.* has none"):
        load_lora(unet(), tmp_path / "lora.safetensors")


@pytest.mark.parametrize("start", ("pissa", "olora"))
@pytest.mark.parametrize(
    "options", ({}, {"use_rslora": True}, {"rank_pattern": {"to_q": 3}, "alpha_pattern": {"to_q": 1}})
)
def test_a_lora_that_took_its_start_from_the_base(start, options, tmp_path):
    want = trained(tmp_path, init_lora_weights=start, target_modules=["to_q", "to_out.0"], **options)
    model = unet()
    adapter = load_lora(model, tmp_path)
    assert adapter.method.name == start
    torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}' changed the base's weights"):
        read_any_lora(unet(), tmp_path)


@pytest.mark.parametrize("start", ("pissa", "olora"))
def test_the_form_into_which_peft_converts_it_is_a_plain_lora(start, tmp_path):
    torch.manual_seed(2)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q"], init_lora_weights=start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_peft_model(unet(), config)
        theirs.peft_config["default"].init_lora_weights = True
        theirs.save_pretrained(tmp_path / "start")
        theirs.peft_config["default"].init_lora_weights = start
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.rand_like(parameter), alpha=0.3)
        want = theirs(X).detach()
        theirs.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    model = unet()
    assert load_lora(model, tmp_path / "lora").method.name == "lora"
    torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-5)


def test_other_starts_that_change_the_base_are_refused_by_name(tmp_path):
    trained(tmp_path)
    file = tmp_path / "adapter_config.json"
    for init in ("pissa_niter_4", "corda", "loftq", "lora_ga", "of tomorrow"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
        with pytest.raises(ValueError, match=f"init_lora_weights='{init}' changed the base's weights"):
            load_lora(unet(), tmp_path)


def test_the_lora_of_an_embedding(tmp_path):
    def base():
        torch.manual_seed(1)
        return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5))

    torch.manual_seed(2)
    theirs = get_peft_model(base(), LoraConfig(r=2, lora_alpha=3, target_modules=["0", "1"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    model, ids = base(), torch.arange(7)
    adapter = load_lora(model, tmp_path)
    torch.testing.assert_close(model(ids), theirs(ids), rtol=1e-5, atol=1e-5)
    again = base()
    adapter.export_lora(tmp_path / "out")
    load_lora(again, tmp_path / "out")
    torch.testing.assert_close(again(ids), model(ids))


def test_an_adapter_of_a_dora_is_saved_and_exported(tmp_path):
    want = trained(tmp_path / "lora", use_dora=True)
    model = unet()
    adapter = load_lora(model, tmp_path / "lora")
    metalora.save(model, tmp_path / "own.safetensors")
    adapter.export_lora(tmp_path / "out")
    torch.testing.assert_close(PeftModel.from_pretrained(unet(), tmp_path / "out")(X), want, rtol=1e-5, atol=1e-5)
    again = copy.deepcopy(unet())
    metalora.load(again, tmp_path / "own.safetensors")
    assert torch.equal(again(X), model(X))
