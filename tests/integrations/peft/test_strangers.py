"""Folders of `metalora.peft` that somebody else made: one line that names the folder, and a model that is as it was."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import metalora.peft as mp
from metalora.integrations.peft.config import Source
from support.saved_folders import CONFIG, TENSORS, tensors
from support.unchanged import unchanged

PICKLE = "adapter_model.bin"
PREFIX = "base_model.model.tensor_bank.metalora_adapters."
LONG = "attention_output_projection_of_the_encoder"


def net():
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict({"0": nn.Linear(6, 6), "1": nn.Tanh(), LONG: nn.Linear(6, 6)}))


def saved(path, config):
    get_peft_model(net(), config).save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "lotr", mp.LoTRConfig(r=2, target_modules=["0", LONG], init_weights=False))


@pytest.fixture
def generated(tmp_path):
    condition = {"source": "tensor", "feature_size": 3, "hidden": 4}
    config = mp.TensorNetworkConfig(method="metalora-cp", r=2, target_modules=["0"], condition=condition)
    return saved(tmp_path / "generated", config)


def entries(**values):
    def change(folder):
        config = json.loads((folder / CONFIG).read_text())
        for key, value in values.items():
            *parts, last = key.split("__")
            place = config
            for part in parts:
                place = place[part]
            place[last] = value
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def with_tensor(name, *shape):
    return tensors(lambda values: values.update({name: torch.ones(shape)}))


def in_pickle(change):
    def run(folder):
        values = load_file(folder / TENSORS)
        (folder / TENSORS).unlink()
        torch.save(change(values), folder / PICKLE)

    return run


def in_both(name, *shape):
    """Another shape in the file and in its list, so that only the configuration can tell."""

    def run(folder):
        with_tensor(PREFIX + name, *shape)(folder)
        config = json.loads((folder / CONFIG).read_text())
        config["placement"]["tensors"][name] = list(shape)
        (folder / CONFIG).write_text(json.dumps(config))

    return run


class Code:
    def __reduce__(self):
        return os.system, ("touch CODE",)


DAMAGES = {
    "another shape": (with_tensor(PREFIX + "owned.U", 2, 6), r"'owned.U' has shape \(2, 6\), expected \(6, 2\)"),
    "another shape in both": (in_both("owned.U", 2, 6), r"'owned.U' has shape \(2, 6\), by the configuration"),
    "NaN": (tensors(lambda t: t[PREFIX + "owned.C"].view(-1)[:1].fill_(torch.nan)), "not finite"),
    "integers": (tensors(lambda t: t.update({PREFIX + "owned.C": t[PREFIX + "owned.C"].int()})), "is of torch.int32"),
    "a weight of the base": (
        with_tensor("base_model.model.0.base_layer.weight", 6, 6), "is not expected, it would replace one of the base",
    ),
    "a tensor twice": (with_tensor("x." + PREFIX + "owned.U", 6, 2), "expected a name that begins with"),
    "a huge rank": (entries(r=10**9), "rank 1000000000 of bond"),
    "a huge vera": (entries(method="vera", r=10**9), "is wired"),
    "no class": (entries(placement__base={"fingerprint": None}), "placement.base has no 'class'"),
    "a placement without tensors": (entries(placement={"targets": {}, "factors": {}}), "missing key 'tensors'"),
    "a placement in a list": (entries(placement=[1]), r"placement is \[1\], expected a mapping"),
    "a size that is a text": (entries(placement__targets={"0": {"in": "6"}}), "expected int, got '6'"),
    "a rank that is a text": (entries(r="2"), "r"),
    "a seed below zero": (entries(seed=-(10**9)), "seed is -1000000000"),
    "an order": (entries(order=-1), "order"),
    "a scale": (entries(scale="per_shape"), "unknown choice 'per_shape'"),
    "a method in a list": (entries(method=[]), r"\[\]"),
    "a task type": (entries(task_type="CAUSAL_LM"), "cannot be loaded"),
    "a bias": (entries(bias={}), "bias"),
    "biases of another kind": (entries(bias="all"), "bias='all' trains biases outside"),
    "layers of a pattern": (entries(layers_pattern="layers"), "layers_pattern needs layers_to_transform"),
    "modules that are a number": (entries(modules_to_save=3), "modules_to_save"),
    "a bomb in targets": (entries(target_modules="(([a-z_0-9]+)+)+!"), "target_modules: '.*' could take too long"),
    "a bomb that excludes": (entries(exclude_modules="(([a-z_]+)+)+!"), "exclude_modules: '.*' could take too long"),
    "a bomb in ranks": (entries(rank_pattern={".*" * 15 + "!": 2}, placement=None), "rank_pattern: '.*' could take"),
    "a bomb in modules": (entries(modules_to_save=["(([a-z_]+)+)+!"]), "modules_to_save: '.*' could take too long"),
    "many names": (entries(target_modules=[f"a{number}" for number in range(20_000)]), "20,000 names, expected"),
    "a name on the Hub": (
        entries(method="metalora-cp", condition={"source": "extractor", "extractor": "hf-hub:a/b"}), "wired|downloaded",
    ),
    "nested JSON": (lambda folder: (folder / CONFIG).write_text('{"a":' * 99_999), "nested too deeply"),
    "code": (in_pickle(lambda values: Code()), f"{PICKLE}: not a file of weights alone"),
    "NaN in a pickle": (in_pickle(lambda values: {k: v * torch.nan for k, v in values.items()}), "not finite"),
    "no tensors in a pickle": (in_pickle(lambda values: ["a"]), "expected a mapping of names to tensors"),
    "another shape in a pickle": (in_pickle(lambda values: {k: v.mT for k, v in values.items()}), "has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_a_folder_that_is_refused(case, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGES[case]
    damage(folder)
    model = net()
    with unchanged(model), pytest.raises(ValueError, match=message) as error:
        mp.load(model, folder, check_base=False)
    assert str(error.value).startswith(str(folder)) and len(str(error.value)) < 2000 and "\n" not in str(error.value)
    assert not (tmp_path / "CODE").exists()


def test_a_huge_mapping_net_is_refused_before_it_is_made(generated):
    entries(condition__hidden=2 * 10**8)(generated)
    with pytest.raises(
        ValueError, match=r"head.weight' has shape \(\d+, 4\), by the configuration it is \(\d+, 2000000"
    ):
        mp.load(net(), generated)


def test_a_pickle_of_weights_is_read(folder):
    x, want = torch.randn(3, 6), mp.load(net(), folder)
    in_pickle(dict)(folder)
    assert torch.equal(mp.load(net(), folder)(x), want(x))


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_ctrl_c_while_a_second_adapter_is_loaded_leaves_the_first(folder, generated, monkeypatch):
    x = torch.randn(3, 6)
    model = mp.load(net(), folder)
    before = model(x)
    with unchanged(model), pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(PeftModel, "load_state_dict", interrupt)
        mp.load(model, generated, "second")
    assert torch.equal(model(x), before) and list(model.peft_config) == ["default"]


def extracting(tmp_path, name):
    """A folder whose features are made by a network that it names."""
    network = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2))
    condition = {"source": "extractor", "stages": ["0"], "feature_size": 6, "hidden": 4}
    config = mp.TensorNetworkConfig(method="metalora-cp", r=2, target_modules=["0"], condition=condition)
    config.source = Source(network)
    folder = saved(tmp_path / "extracting", config)
    entries(condition__extractor=name)(folder)
    return folder, network


def test_an_extractor_comes_from_the_caller(tmp_path, monkeypatch):
    folder, network = extracting(tmp_path, "hf-hub:somebody/network")
    asked = []
    monkeypatch.setattr(
        "metalora.adapters.conditioning.extractor.load_model", lambda name: asked.append(name) or network
    )
    for load in (mp.load, PeftModel.from_pretrained):
        with pytest.raises(
            ValueError, match="'hf-hub:somebody/network' may be downloaded: pass extractor=..., or allow"
        ):
            load(net(), folder)
    mp.load(net(), folder, extractor=network)
    assert not asked
    mp.load(net(), folder, allow_download=True)
    assert asked == ["timm:hf-hub:somebody/network"]
