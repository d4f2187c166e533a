"""LoRA folders and LoCon files that somebody else made: what is wrong is one line, and the model stays as it was."""

import json
import os
from dataclasses import dataclass, fields

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.import_ import load_lora
from metalora.io.lora.peft_config import CHANGE_NOTHING, MUST_BE_OFF, READ, SWITCHES
from metalora.io.lora.trained_lora import in_model
from support.saved_folders import CONFIG, TENSORS, tensors
from support.unchanged import unchanged

A, B = "base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight"


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))


@pytest.fixture
def folder(tmp_path):
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], init_lora_weights=False)
    get_peft_model(net(), config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def entry(key, value):
    """A change of one entry of the configuration."""

    def change(folder):
        config = json.loads((folder / CONFIG).read_text())
        config[key] = value
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def number(name, value):
    return tensors(lambda values: values[name].view(-1)[:1].fill_(value))


def rename(old, new):
    prefix = "base_model.model."
    names = {f"{prefix}{old}.lora_{half}.weight": f"{prefix}{new}.lora_{half}.weight" for half in "AB"}
    return tensors(lambda values: [values.update({names[name]: values.pop(name)}) for name in names])


def in_place_of(name, make):
    """A change that puts something other than a file in the place of a file."""

    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


WRONG_ENTRIES = {
    "half a pattern": ("rank_pattern", {"(": 2}, "rank_pattern: '\\(' is not a regular expression"),
    "patterns in a list": ("rank_pattern", ["0"], "rank_pattern is \\['0'\\], expected a mapping"),
    "a rank by a text": ("rank_pattern", {"0": "2"}, "rank_pattern of '0' is '2', expected an integer"),
    "NaN": ("alpha_pattern", {"0": float("nan")}, "alpha_pattern of '0' is nan, expected more than 0"),
    "a huge alpha": ("lora_alpha", 1e300, "lora_alpha is 1e\\+300, expected more than 0"),
    "a rank with a fraction": ("r", 2.0, "r is 2.0, expected an integer"),
    "a huge rank": ("r", 1e9, "r is 1000000000.0, expected an integer"),
    "another rank": ("r", 10**9, "expected \\(1000000000, in\\)"),
    "a switch that is a text": ("use_rslora", "no", "use_rslora is 'no', expected true or false"),
    "a switch that is a number": ("fan_in_fan_out", 1, "fan_in_fan_out is 1, expected true or false"),
    "an init that is a number": ("init_lora_weights", 3, "init_lora_weights is 3, expected true, false or a name"),
    "layers that are repeated": ("layer_replication", [[0, 1], [0, 1]], "layer_replication is .*: its base repeats"),
    "aLoRA": ("alora_invocation_tokens", [3], "an aLoRA is only active behind some tokens"),
    "QALoRA": ("use_qalora", True, "use_qalora is True: QALoRA pools"),
    "biases": ("lora_bias", True, "trained biases"),
    "biases of the base": ("bias", ["all"], "trained biases \\(bias=\\['all'\\]\\)"),
}  # fmt: skip
DAMAGES = {name: (entry(key, value), message) for name, (key, value, message) in WRONG_ENTRIES.items()} | {
    "nested JSON": (lambda f: (f / CONFIG).write_text("[" * 100_000), "not JSON \\(nested too deeply\\)"),
    "a number of many digits": (lambda f: (f / CONFIG).write_text('{"r": ' + "1" * 9999 + "}"), "not JSON"),
    "no text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "not JSON"),
    "a large text": (lambda f: os.truncate(f / CONFIG, 2**27), "cannot be read \\(134,217,728 bytes"),
    "a pipe": (in_place_of(TENSORS, os.mkfifo), "cannot be read \\(not a regular file\\)"),
    "a device": (in_place_of(CONFIG, lambda path: path.symlink_to("/dev/zero")), "cannot be read \\(not a regular"),
    "a folder": (in_place_of(TENSORS, os.mkdir), "cannot be read \\(Is a directory\\)"),
    "NaN in A": (number(A, float("nan")), "lora_A.weight' has numbers that are not finite"),
    "inf in B": (number(B, float("inf")), "lora_B.weight' has numbers that are not finite"),
    "a product that overflows": (number(B, 3e38), "'0' has a lora_B whose product with its scale 2 is not finite"),
    "integers": (tensors(lambda t: t.update({A: t[A].int()})), "is of torch.int32, expected floating-point"),
    "no rows": (tensors(lambda t: t.update({A: t[A][:0], B: t[B][:, :0]})), "has lora_A \\(0, 6\\)"),
    "no axes": (tensors(lambda t: t.update({B: torch.tensor(1.0)})), "lora_B \\(\\)"),
    "a half twice": (tensors(lambda t: t.update({"0.lora_A.weight": t[A].clone()})), "'0' has lora_down.weight twice"),
    "a long name": (rename("2", "a." * 9999 + "b"), "has no module 'a.a.a.*\\.\\.\\."),
}  # fmt: skip


def check_refusal(path, message):
    model = net()
    with unchanged(model), pytest.raises(ValueError, match=message) as error:
        load_lora(model, path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000 and "\n" not in str(error.value)


@pytest.mark.parametrize("case", DAMAGES)
def test_a_folder_that_is_refused(case, folder):
    damage, message = DAMAGES[case]
    damage(folder)
    check_refusal(folder, message)


LONG = "attention_output_projection_of_the_encoder"
BOMBS = {"nested": "(([a-z_.0-9]+)+)+!", "many stars": ".*" * 15 + "!"}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("key", ("rank_pattern", "alpha_pattern"))
def test_a_pattern_that_would_never_end_is_refused(key, bomb, tmp_path):
    model = nn.ModuleDict({LONG: nn.Linear(6, 8)})
    get_peft_model(model, LoraConfig(r=2, target_modules=[LONG])).save_pretrained(tmp_path)
    entry(key, {bomb: 2})(tmp_path)
    with pytest.raises(ValueError, match=f"{CONFIG}: {key}: '.*' could take too long to match"):
        load_lora(nn.ModuleDict({LONG: nn.Linear(6, 8)}), tmp_path)


HARMLESS = {
    "a pattern with alternatives": ("rank_pattern", {r"(.*\.)?(1|2)": 2}),
    "a path": ("alpha_pattern", {r"^0": 4}),
    "how it was trained": ("megatron_config", {"tensor_model_parallel_size": 1}),
    "its base": ("base_model_name_or_path", "https://example.invalid/model"),
    "code of its base": ("auto_mapping", {"base_model_class": "os.system", "parent_library": "os"}),
    "a switch that is null": ("use_dora", None),
    "a later entry that is off": ("use_new_method", False),
    "targets that never match": ("target_modules", "(([a-z]+)+)+!"),
}


@pytest.mark.parametrize("key, value", HARMLESS.values(), ids=HARMLESS)
def test_entries_that_change_nothing_are_read(key, value, folder):
    before, after, x = net(), net(), torch.randn(3, 6)
    load_lora(before, folder)
    entry(key, value)(folder)
    load_lora(after, folder)
    assert torch.equal(after(x), before(x))


def test_two_names_of_one_module_are_refused():
    model = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(6, 8)})})
    update = LowRankUpdate(torch.ones(1, 6), torch.ones(8, 1))
    with pytest.raises(
        ValueError, match="FILE: two updates of module 'block.fc', by the names 'block.fc' and 'w.block.fc'"
    ):
        in_model({"block.fc": update, "w.block.fc": update}, model, "FILE")


def test_an_unknown_entry_is_refused_by_name(folder):
    entry("use_new_method", {"a": 1})(folder)
    check_refusal(folder, "adapter_config.json: use_new_method is {'a': 1}: this version does not know what that")


def test_an_unknown_entry_with_the_default_of_the_installed_peft_is_read(folder, monkeypatch):
    @dataclass
    class LaterConfig(LoraConfig):
        new_size: int = 16

    monkeypatch.setattr("peft.LoraConfig", LaterConfig)
    entry("new_size", 16)(folder)
    load_lora(net(), folder)
    entry("new_size", 17)(folder)
    check_refusal(folder, "new_size is 17: this version does not know")


@pytest.mark.parametrize("key", MUST_BE_OFF)
def test_what_is_not_followed_is_refused_by_name(key, folder):
    entry(key, True)(folder)
    check_refusal(folder, f"adapter_config.json: {key} is True: ")


def test_every_field_of_the_installed_peft_is_known():
    known = {*READ, *CHANGE_NOTHING, *SWITCHES, *MUST_BE_OFF}
    assert {field.name for field in fields(LoraConfig)} <= known


# ---- files of kohya and LyCORIS --------------------------------------------------------------------------------------
LOCON = {"lora_0.lora_down.weight": (2, 6), "lora_0.lora_up.weight": (8, 2), "lora_0.alpha": ()}
LOHA = {f"lora_0.hada_{name}": shape for name, shape in
        {"w1_a": (8, 3), "w1_b": (3, 6), "w2_a": (8, 3), "w2_b": (3, 6)}.items()}  # fmt: skip
LOKR = {"lora_0.lokr_w1": (2, 2), "lora_0.lokr_w2_a": (4, 9), "lora_0.lokr_w2_b": (9, 3)}
WIDE = 300_000  # of a product that no memory holds

FILES = {
    "no axes": (LOCON | {"lora_0.lora_up.weight": ()}, 1.0, "lora_up.weight of shape \\(\\), expected rows"),
    "one axis": (LOCON | {"lora_0.lora_up.weight": (8,)}, 1.0, "lora_up.weight of shape \\(8,\\), expected rows"),
    "no rank": (LOCON | {"lora_0.lora_up.weight": (8, 0)}, 1.0, "lora_up.weight of shape \\(8, 0\\), expected rows"),
    "alpha of two": (LOCON | {"lora_0.alpha": (2,)}, 1.0, "an alpha of shape \\(2,\\), expected one number"),
    "NaN": (LOCON, float("nan"), "has numbers that are not finite"),
    "a product that overflows": (LOCON, 3e38, "a product with its scale, that is not finite"),
    "two names": (LOCON | {f"lora_unet{k[4:]}": v for k, v in LOCON.items()}, 1.0, "two updates of module '0'"),
    "a core of other axes": (LOCON | {"lora_0.lora_mid.weight": (2, 3)}, 1.0, "tensors that do not fit together"),
    "a wide kernel": (
        {"lora_0.lora_down.weight": (1, 6), "lora_0.lora_up.weight": (8, 1), "lora_0.lora_mid.weight": (1, 1, 3000, 3)},
        1.0, "an update for a weight of \\(8, 6, 3000, 3\\), the model's is \\(8, 6\\)",
    ),
    "a wide LoHa": (
        {name: tuple(3 if size == 3 else WIDE for size in shape) for name, shape in LOHA.items()},
        1.0, "an update for a weight of \\(300000, 300000\\)",
    ),
    "a wide LoKr": (
        {"lora_0.lokr_w1": (1500, 1500), "lora_0.lokr_w2_a": (WIDE, 9), "lora_0.lokr_w2_b": (9, WIDE)},
        1.0, "an update for a weight of \\(450000000, 450000000\\)",
    ),
}  # fmt: skip


def write(shapes, value, path):
    save_file({name: torch.full(shape, value) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_refused(case, tmp_path):
    shapes, value, message = FILES[case]
    check_refusal(write(shapes, value, tmp_path / "file.safetensors"), message)


HIGH_RANKS = {"LoHa": (LOHA, "hada"), "LoKr": (LOKR, "lokr"), "LoHa of ranks of no use": (
    {f"lora_0.hada_{name}": shape for name, shape in
     {"w1_a": (8, 9000), "w1_b": (9000, 6), "w2_a": (8, 9000), "w2_b": (9000, 6)}.items()}, "hada")}  # fmt: skip


@pytest.mark.parametrize("case", HIGH_RANKS)
def test_ranks_above_that_of_the_weight_are_multiplied_out(case, tmp_path):
    shapes, algorithm = HIGH_RANKS[case]
    values = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(7)) / 9 for name, shape in shapes.items()
    }
    save_file(values, tmp_path / "file.safetensors")
    short = {name.removeprefix(f"lora_0.{algorithm}_"): value for name, value in values.items()}
    if algorithm == "hada":
        want = (short["w1_a"] @ short["w1_b"]) * (short["w2_a"] @ short["w2_b"])
    else:
        want = torch.kron(short["w1"], short["w2_a"] @ short["w2_b"])
    delta = load_lora(net(), tmp_path / "file.safetensors").delta("0")
    torch.testing.assert_close(delta, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
