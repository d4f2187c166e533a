"""The adapter file: damaged, foreign and unwritable files are refused and nothing is changed."""

import copy
import errno
import json
import os

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as dump
from torch import nn

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach, load, merge, save, unmerge
from metalora.io.adapter_file import checksum
from support.adapters import randomise
from support.conv_net import BODY, SOURCES, conv_net, images


def saved(tmp_path, method="metalora-cp", source="stages"):
    """(base as it was, adapted model, path of its file)."""
    base = conv_net()
    model = copy.deepcopy(base)
    config = AdapterConfig(method=method, rank=2, targets=BODY, condition=ConditionConfig(**SOURCES[source], hidden=5))
    randomise(attach(model, config, example=images(1)))
    path = tmp_path / "adapter"
    save(model, path)
    return base, model, path


def rewrite(path, **changes):
    """The same tensors under another description."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    description = json.loads(header["__metadata__"]["metalora"]) | changes
    description["sha256"] = checksum(description, tensors_of(content))
    header["__metadata__"]["metalora"] = json.dumps(description)
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def other_weights(base):
    with torch.no_grad():
        base[2][0].weight[0, 0, 0, 0] += 1e-3
    return base


def wider(base):
    base[2][0] = nn.Conv2d(4, 5, 3).double()
    return base


def described(path):
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["metalora"])


def write(path, description, tensors):
    """A file with other tensors under the same description."""
    description["sha256"] = checksum(description, tensors)
    path.write_bytes(dump(tensors, {"metalora": json.dumps(description)}))


def without_a_factor(path):
    tensors, description = tensors_of(path.read_bytes()), described(path)
    del tensors["factors/2.2.B"]
    write(path, description, tensors)


def with_a_smaller_factor(path):
    """One row instead of two, which `copy_` would broadcast silently."""
    tensors, description = tensors_of(path.read_bytes()), described(path)
    tensors["factors/2.2.B"] = tensors["factors/2.2.B"][:1].contiguous()
    write(path, description, tensors)


def with_nan(path):
    tensors, description = tensors_of(path.read_bytes()), described(path)
    tensors["factors/2.2.B"][0, 0] = torch.nan
    write(path, description, tensors)


def with_no_deviation(path):
    tensors, description = tensors_of(path.read_bytes()), described(path)
    tensors["conditioner/std"][1] = 0
    write(path, description, tensors)


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


WIRED = {"name": "metalora-cp", "factors": {"A": "in r", "B": "r out"}}
KEEP = lambda base: base  # noqa: E731
BAD_FILES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), KEEP, "truncated or damaged"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), KEEP, "truncated or damaged"),
    "empty": (lambda p: p.write_bytes(b""), KEEP, "truncated or damaged"),
    "text": (lambda p: p.write_text("rank: 4"), KEEP, "truncated or damaged"),
    "tampered": (flip, KEEP, "does not match its checksum"),
    "without a factor": (without_a_factor, KEEP, "tensor 'factors/2.2.B' is missing"),
    "a smaller factor": (with_a_smaller_factor, KEEP, "'factors/2.2.B' has shape (1, 6), expected (2, 6)"),
    "another version": (lambda p: rewrite(p, version=99), KEEP, "version 99 of the format, this library reads 1"),
    "another format": (lambda p: rewrite(p, format="lora"), KEEP, "not a metalora-adapter file"),
    "another wiring": (lambda p: rewrite(p, method=WIRED), KEEP, "is wired"),
    "an unknown setting": (lambda p: rewrite(p, config={"rnak": 2}), KEEP, "did you mean 'rank'?"),
    "an unknown method": (
        lambda p: rewrite(p, config=described(p)["config"] | {"method": "lroa"}),
        KEEP,
        "unknown method",
    ),
    "a setting less": (
        lambda p: rewrite(p, config=without(described(p)["config"], "rank")),
        KEEP,
        "config has no 'rank'",
    ),
    "a setting of the condition less": (
        lambda p: rewrite(p, config=described(p)["config"] | {"condition": {}}),
        KEEP,
        "config has no 'condition.source'",
    ),
    "a long target": (
        lambda p: rewrite(p, config=described(p)["config"] | {"targets": ["y" * 5000]}),
        KEEP,
        f"target '{'y' * 76}... matches no module",
    ),
    "settings that are a text": (lambda p: rewrite(p, config="x"), KEEP, "config is 'x', expected a mapping"),
    "targets that are a number": (lambda p: rewrite(p, targets=5), KEEP, "targets is 5, expected a mapping"),
    "no wiring": (lambda p: rewrite(p, method={"name": "lora"}), KEEP, "not complete, it has no 'method.factors'"),
    "a base of null": (lambda p: rewrite(p, base=None), KEEP, "base is None, expected a mapping"),
    "a wrong size": (
        lambda p: rewrite(p, targets={"2.0": {"kind": "conv2d", "sizes": {"in": "4", "out": 6}}}),
        KEEP,
        "targets.2.0.sizes.in is '4', expected an integer",
    ),
    "names that are numbers": (
        lambda p: rewrite(p, base=described(p)["base"] | {"left_out": [1]}),
        KEEP,
        "an item of base.left_out is 1, expected a text",
    ),
    "a rank of a billion": (
        lambda p: rewrite(p, config=described(p)["config"] | {"rank": 10**9}),
        KEEP,
        "rank 1000000000 of bond 'r' is above",
    ),
    "a wide mapping net": (
        lambda p: rewrite(
            p,
            config=described(p)["config"] | {"condition": described(p)["config"]["condition"] | {"hidden": 2 * 10**8}},
        ),
        KEEP,
        "expected (4, 200000000) by the configuration",
    ),
    "NaN": (with_nan, KEEP, "'factors/2.2.B' has numbers that are not finite"),
    "a deviation of zero": (with_no_deviation, KEEP, "a standard deviation that is not positive"),
    "not there": (lambda p: p.unlink(), KEEP, "no such adapter file"),
    "a directory": (lambda p: (p.unlink(), p.mkdir()), KEEP, "a directory, expected an adapter file"),
    "another model": (lambda p: None, lambda b: nn.Sequential(nn.Linear(2, 2)).double(), "has no '2.0'"),
    "another width": (lambda p: None, wider, "target '2.0' has another shape"),
    "other weights": (lambda p: None, other_weights, "fingerprints differ"),
}


@pytest.mark.parametrize("damage, change, message", BAD_FILES.values(), ids=BAD_FILES)
def test_a_failing_load_leaves_the_model_as_it_was(damage, change, message, tmp_path):
    base, model, path = saved(tmp_path)
    base = change(base)
    damage(path)
    kinds = [(n, type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in base.named_modules()]
    grads = [p.requires_grad for p in base.parameters()]
    state = {k: v.clone() for k, v in base.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load(base, path)
    assert message in str(error.value)
    assert [(n, type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in base.named_modules()] == kinds
    assert adapter_of(base) is None and [p.requires_grad for p in base.parameters()] == grads
    assert all(torch.equal(v, state[k]) for k, v in base.state_dict().items())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("merged", (False, True), ids=("", "saved while merged"))
def test_a_loaded_model_makes_the_same_conditions(source, merged, tmp_path):
    base, model, path = saved(tmp_path, "metalora-tr", source)
    adapter, x = adapter_of(model), images()
    adapter.calibrate(images(5))
    if merged:
        merge(model, adapter.condition(x).mean())
    save(model, path)
    unmerge(model)
    load(base, path)
    assert torch.equal(base(x), model(x))


def test_ctrl_c_during_a_load_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    base, _, path = saved(tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("metalora.io.adapter_file.restore", stop)
    with pytest.raises(KeyboardInterrupt):
        load(base, path)
    assert adapter_of(base) is None


def test_loading_draws_nothing_from_the_random_state(tmp_path):
    base, model, path = saved(tmp_path)
    before = torch.get_rng_state()
    load(base, path)
    assert torch.equal(torch.get_rng_state(), before)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*args, **kwargs):
    raise FULL


@pytest.mark.parametrize("where", ("fsync", "replace"))
def test_a_full_disk_keeps_the_old_file(where, tmp_path, monkeypatch):
    base, model, path = saved(tmp_path)
    old, x = path.read_bytes(), images()
    want = model(x)
    randomise(adapter_of(model))
    monkeypatch.setattr(os, where, fail)
    with pytest.raises(ValueError, match="No space left on device.*the old file is unchanged"):
        save(model, path)
    monkeypatch.undo()
    assert path.read_bytes() == old and [f.name for f in tmp_path.iterdir()] == ["adapter"]
    load(base, path)
    assert torch.equal(base(x), want)


BAD_PLACES = {"a directory that is not there": "no/where", "a directory": "."}


@pytest.mark.parametrize("place", BAD_PLACES.values(), ids=BAD_PLACES)
def test_a_place_that_cannot_be_written(place, tmp_path):
    base, model, path = saved(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="could not be written"):
        save(model, tmp_path / "sub" / place)
    assert not list((tmp_path / "sub").iterdir())


def test_a_file_in_half_precision(tmp_path):
    base, model, path = saved(tmp_path)
    full_size = path.stat().st_size
    numbers = {key: value.detach().clone() for key, value in adapter_of(model).factors.items()}
    save(model, path, torch.float16)
    assert all(torch.equal(adapter_of(model).factors[key], value) for key, value in numbers.items())
    assert path.stat().st_size < full_size
    again = load(copy.deepcopy(base), path)
    for key, value in again.factors.items():
        assert torch.equal(value, numbers[key].half().to(value.dtype))
    adapter_of(model).factors["2.0.A"].data[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="'factors/2.0.A' has numbers that are not finite in torch.float16"):
        save(model, path, torch.float16)
    load(copy.deepcopy(base), path)  # the old file is still complete


def test_the_description_says_what_the_file_holds(tmp_path):
    base, model, path = saved(tmp_path)
    description = described(path)
    assert description["method"] == {"name": "metalora-cp", "factors": {"A": "kh kw in r", "c": "r", "B": "r out"}}
    assert description["targets"]["2.0"]["sizes"] == {"in": 4, "out": 4, "kh": 3, "kw": 3, "r": 2}
    assert description["num_params"] == adapter_of(model).num_params() and description["base"]["class"] == "Sequential"
    assert description["feature_size"] == 2 * (4 + 6)


def test_a_head_in_the_same_file(tmp_path):
    base, model, _ = saved(tmp_path, "lora")
    head, path = nn.Linear(4, 3), tmp_path / "with-head"
    save(model, path, torch.float16, extra_module=head)
    other, plain = nn.Linear(4, 3), copy.deepcopy(base)
    load(plain, path, extra_module=other)
    assert torch.equal(other.weight, head.weight) and torch.equal(other.bias, head.bias)  # not in half precision
    load(copy.deepcopy(base), path)  # the adapter alone


HEADS = {
    "another shape": (nn.Linear(4, 2), "'weight' has shape (3, 4), that of this Linear is (2, 4)"),
    "a name less": (nn.Linear(4, 3, bias=False), "'bias' is saved with the adapter, but it is not in this Linear"),
    "another module": (nn.Sequential(nn.Linear(4, 3)), "'0.bias' is not saved with the adapter"),
}


@pytest.mark.parametrize("head, message", HEADS.values(), ids=HEADS)
def test_a_head_that_is_not_the_saved_one(head, message, tmp_path):
    base, model, _ = saved(tmp_path, "lora")
    save(model, tmp_path / "with-head", extra_module=nn.Linear(4, 3))
    with pytest.raises(ValueError) as error:
        load(base, tmp_path / "with-head", extra_module=head)
    assert message in str(error.value) and adapter_of(base) is None


def test_a_model_that_has_an_adapter_is_refused(tmp_path):
    _, model, path = saved(tmp_path)
    adapter = adapter_of(model)
    with pytest.raises(ValueError, match="Sequential already has an adapter: detach it first"):
        load(model, path)
    assert adapter_of(model) is adapter


def test_an_adapter_with_an_extractor_is_loaded_with_the_network_that_is_given(tmp_path):
    base, extractor, x = conv_net(), conv_net(), images()
    model = copy.deepcopy(base)
    condition = ConditionConfig(source="extractor", stages=("0",), hidden=5)
    config = AdapterConfig("metalora-cp", 2, targets=BODY, condition=condition)
    randomise(attach(model, config, example=images(1), extractor=extractor))
    save(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="needs condition.extractor"):
        load(base, tmp_path / "adapter")
    load(base, tmp_path / "adapter", extractor=extractor)
    assert torch.equal(base(x), model(x))
