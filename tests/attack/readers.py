"""What a changed file says, read with no code of the library: the output of small networks under its changes."""

import copy
import json
import math

import torch
import yaml
from safetensors.torch import load as tensors_in
from torch import nn

from oracles.conditioning import generated, standardised
from oracles.dense import cp, lora, lotr

FACTORS, VALUES = "factors/", "values/"
LARGE = 1e20


def output_with(base: nn.Module, changes: dict, x: torch.Tensor) -> torch.Tensor:
    """The output of a base whose linear layers have changes (in, out) of their weights, by path."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for path, change in changes.items():
            model.get_submodule(path).weight += change.to(torch.float32).mT
        return model(x)


def contents(path) -> tuple[dict, dict]:
    """The description and the tensors of a file, in single precision."""
    description, tensors = raw(path)
    return description, floats(tensors)


def raw(path) -> tuple[dict, dict]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["metalora"]), tensors_in(content)


class Overflow(Exception):
    """The numbers are finite, but so large that their products may not be."""


def floats(tensors: dict) -> dict:
    """Tensors in single precision, all of them finite."""
    single = {name: value.to(torch.float32) for name, value in tensors.items()}
    assert all(value.isfinite().all() for value in single.values())
    if any(value.numel() and value.abs().max() > LARGE for value in single.values()):
        raise Overflow
    return single


def scale(alpha, rank: int) -> float:
    assert alpha is None or math.isfinite(torch.tensor(float(alpha), dtype=torch.float32))
    return 1.0 if alpha is None else alpha / rank


def adapter_of_lora(base, x, path):
    """An adapter file of method "lora"."""
    description, tensors = contents(path)
    config = description["config"]
    assert config["method"] == "lora" and config.get("scale") is None and not config.get("alpha_pattern")
    changes = {}
    for target in ("0", "2"):
        dense = lora(tensors[f"{FACTORS}{target}.A"], tensors[f"{FACTORS}{target}.B"])
        changes[target] = scale(config["alpha"], len(tensors[f"{FACTORS}{target}.B"])) * dense
    return output_with(base, changes, x)


def adapter_of_cp(base, x, features, path):
    """An adapter file of MetaLoRA (CP), under the condition that it makes of a support set."""
    description, tensors = contents(path)
    config = description["config"]
    condition = config["condition"]
    assert config["method"] == "metalora-cp" and condition["scope"] == "support" and not condition["labelled"]
    net = {name.rpartition("mapping_net.")[2]: value for name, value in tensors.items() if "mapping_net" in name}
    mean, std = (tensors[f"conditioner/{name}"].tolist() for name in ("mean", "std"))
    z = standardised(features.mean(0).tolist(), mean, std, condition["clamp"])
    centres = [tensors[f"{FACTORS}{target}.c"] for target in ("0", "2")]
    made = generated(net, z, centres, condition["bound"])
    changes = {}
    for target, core in zip(("0", "2"), made, strict=True):
        dense = cp(tensors[f"{FACTORS}{target}.A"], core.float(), tensors[f"{FACTORS}{target}.B"])
        changes[target] = scale(config["alpha"], len(core)) * dense
    return output_with(base, changes, x)


def condition_of_cp(base, x, factors, alpha, path):
    """A condition file, for an adapter of MetaLoRA (CP) with these factors."""
    _, tensors = contents(path)
    changes = {}
    for target in ("0", "2"):
        (core,) = tensors[f"{VALUES}{target}.c"]
        changes[target] = scale(alpha, len(core)) * cp(factors[f"{target}.A"], core, factors[f"{target}.B"])
    return output_with(base, changes, x)


def peft_lora(base, x, path):
    """A folder of a LoRA, by PEFT itself."""
    from peft import PeftModel

    config = json.loads((path / "adapter_config.json").read_text())
    floats(tensors_in((path / "adapter_model.safetensors").read_bytes()))
    for alpha in (config["lora_alpha"], *config.get("alpha_pattern", {}).values()):
        scale(alpha, 1)
    with torch.no_grad():
        return PeftModel.from_pretrained(copy.deepcopy(base), str(path)).eval()(x)


def locon(base, x, path):
    """A file of kohya's scripts: up · down · alpha / rank."""
    tensors = floats(tensors_in(path.read_bytes()))
    changes = {}
    for target in ("0", "2"):
        name = f"lora_unet_{target}"
        down = tensors.get(f"{name}.lora_down.weight")
        if down is not None:
            up = tensors[f"{name}.lora_up.weight"]
            alpha = tensors.get(f"{name}.alpha", torch.tensor(float(len(down))))
            changes[target] = (up @ down).mT * alpha / len(down)
    known = {f"lora_unet_{target}.{part}" for target in ("0", "2") for part in LOCON_PARTS}
    assert tensors.keys() <= known and len(changes) > 0
    return output_with(base, changes, x)


LOCON_PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


def peft_lotr(base, x, path):
    """A folder of `metalora.peft` of method "lotr"."""
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = floats(tensors_in((path / "adapter_model.safetensors").read_bytes()))
    named = {name.rpartition(".")[2]: value for name, value in tensors.items()}
    assert config["method"] == "lotr" and set(config["target_modules"]) == {"0", "2"} and config.get("scale") is None
    changes = {
        target: scale(config.get("alpha"), config["r"])
        * lotr(named["U"], named["C"][:, :, number : number + 1], named["V"])
        for number, target in enumerate(("0", "2"))
    }
    return output_with(base, changes, x)


def task(valid, path):
    """A folder of a task with other finite numbers, or its classes in another order: its output is not computed."""
    (description, tensors), (before, tensors_before) = (raw(folder / "task.safetensors") for folder in (path, valid))
    description = {name: description[name] for name in before}  # a further entry says nothing
    for labels in (description["labels"], before["labels"]):
        labels["classes"] = sorted(labels["classes"])
    assert description | {"sha256": ""} == before | {"sha256": ""} and tensors.keys() == tensors_before.keys()
    for name, value in tensors.items():
        assert (value.dtype, value.shape) == (tensors_before[name].dtype, tensors_before[name].shape), name
    floats({name: value for name, value in tensors.items() if name != "readout/nearest"})


# ---- run files -------------------------------------------------------------------------------------------------------
def whole(least):
    return lambda value: type(value) is int and value >= least


def number(above=-math.inf, least=-math.inf, most=math.inf):
    def is_in_range(value):
        is_number = type(value) in (int, float) and math.isfinite(value)
        return is_number and above < value <= most and value >= least

    return is_in_range


def choice(*names):
    return lambda value: value in names and isinstance(value, str)


RULES = {  # what each entry of the run file may be
    "suite": choice("attributes"),
    "data": lambda value: isinstance(value, str),
    "method": lambda value: isinstance(value, str),
    "seed": lambda value: type(value) is int and 0 <= value < 2**63,
    "split": choice("val", "test"),
    "adapter.method": choice("lora"),
    "adapter.rank": whole(1),
    "adapter.alpha": lambda value: value is None or number()(value),
    "adapter.targets": lambda value: value in ("all", "linear", "0", "1", "2", "3") or value == ["0", "2"],
    "adapter.dropout": number(least=0, most=1 - 1e-16),
    "train.steps": whole(0),
    "train.lr": number(above=0),
    "train.warmup": number(least=0, most=1),
    "train.clip": number(least=0),
    "train.schedule": choice("onecycle", "linear", "constant", "cosine"),
    "train.checkpoint_every": whole(1),
    "backbone.batch": whole(1),
    "backbone.label_smoothing": number(least=0, most=1 - 1e-16),
}


def flat(values, place=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
        else:
            yield place + key, value


def numbers_of_run(values: dict) -> torch.Tensor:
    """The numbers of a run file's entries that `RULES` has, in the order of the table; other types as hashes."""
    entries = dict(flat(values))
    row = []
    for name in RULES:
        value = entries.get(name)
        value = list(value) if isinstance(value, (list, tuple)) else value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        row.append(float(value) if is_number and abs(value) < 1e300 else float(hash_of(value)))
    return torch.tensor(row, dtype=torch.float64)


def hash_of(value) -> int:
    return sum((place + 1) * byte for place, byte in enumerate(repr(value).encode())) % 10**6 + 10**7


class OnceLoader(yaml.SafeLoader):
    """A reader of YAML that refuses a key that is there twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys))
        return super().construct_mapping(node, deep)


def run_file(defaults: dict, path):
    """A run file of which every entry is in its range; the entries that it lacks have their defaults."""
    values = yaml.load(path.read_text(), OnceLoader) or {}
    assert all(isinstance(values.get(part, {}), dict) for part in ("adapter", "train", "backbone"))
    entries = dict(flat(values))
    for name, value in entries.items():
        assert name in RULES and RULES[name](value), name
    absent = {} if "adapter" in values else {name: None for name in RULES if name.startswith("adapter.")}
    return numbers_of_run(defaults | absent | entries)
