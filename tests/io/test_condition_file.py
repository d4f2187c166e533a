"""Condition files say whose they are: damaged, foreign and misshapen ones are refused, and nothing changes."""

import copy
import json
import pickle
import random
import warnings

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as dump
from torch import nn

from metalora import AdapterConfig, Condition, ConditionConfig, adapter_of, attach, fit, load, merge, save
from metalora.config import TrainConfig
from metalora.io.described_file import checksum, description_in
from support.adapters import randomise

SUPPORT = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5)
X = torch.arange(12.0).reshape(2, 6) / 7


def base(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).eval()


def adapted(seed=0, numbers=1, method="metalora-cp", targets=("0", "2"), **condition):
    """An adapted model: the seed of its base, that of its adapter's numbers."""
    model = base(seed)
    config = AdapterConfig(method, rank=2, targets=targets, condition=ConditionConfig(**vars(SUPPORT) | condition))
    torch.manual_seed(numbers)
    randomise(attach(model, config), 0.3)
    return model


def made(model, n=None):
    torch.manual_seed(9)
    return adapter_of(model).condition(torch.randn(4 if n is None else n, 5)).detach()


@pytest.fixture
def saved(tmp_path):
    """(model, condition, path of its file)."""
    model = adapted()
    condition = made(model)
    condition.save(tmp_path / "c")
    return model, condition, tmp_path / "c"


def rewrite(path, change, **description):
    """Other tensors and another description under a checksum that fits."""
    content = path.read_bytes()
    tensors, described = tensors_of(content), description_in(content) | description
    change(tensors)
    described["sha256"] = checksum(described, tensors)
    path.write_bytes(dump(tensors, {"metalora": json.dumps(described)}))


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def nothing(tensors):
    pass


def put_nan(tensors):
    tensors["values/2.c"][0, 0] = float("nan")


def two_of_one(tensors):
    tensors["values/0.c"] = torch.cat([tensors["values/0.c"]] * 2)


# name -> (what happens to the file, what the error says)
DAMAGE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "truncated or damaged"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:60]), "truncated or damaged"),
    "empty": (lambda p: p.write_bytes(b""), "truncated or damaged"),
    "text": (lambda p: p.write_text("a condition"), "not a complete condition file"),
    "a bit of a number": (lambda p: flip(p, -8), "does not match its checksum"),
    "without a description": (lambda p: p.write_bytes(dump(tensors_of(p.read_bytes()))), "metalora has not written it"),
    "another format": (lambda p: rewrite(p, nothing, format="metalora-task"), "not a metalora-condition file"),
    "a later version": (lambda p: rewrite(p, nothing, version=99), "version 99 of the format, this library reads 2"),
    "a later version of the old format": (
        lambda p: p.write_bytes(dump(tensors_of(p.read_bytes()), {"metalora": '{"kind": "condition", "version": 99}'})),
        "version 99 of the format",
    ),
    "NaN": (lambda p: rewrite(p, put_nan), "'values/2.c' has numbers that are not finite"),
    "infinite features": (lambda p: rewrite(p, lambda t: t["features"].fill_(torch.inf)), "'features' has numbers"),
    "integers": (lambda p: rewrite(p, lambda t: t.update({"values/0.c": t["values/0.c"].int()})), "'values/0.c' has"),
    "no features": (lambda p: rewrite(p, lambda t: t.pop("features")), "tensor 'features' is missing"),
    "no penalty": (lambda p: rewrite(p, lambda t: t.pop("penalty")), "tensor 'penalty' is missing"),
    "no value": (lambda p: rewrite(p, lambda t: (t.pop("values/0.c"), t.pop("values/2.c"))), "no value of a factor"),
    "a tensor more": (lambda p: rewrite(p, lambda t: t.update(x=torch.ones(1))), "tensor 'x' is not expected"),
    "unequal n": (lambda p: rewrite(p, two_of_one), "'values/0.c' has shape (2, 2), expected (1, ...)"),
    "flat features": (lambda p: rewrite(p, lambda t: t.update(features=torch.ones(1))), "expected features (n, d)"),
    "a penalty of two": (lambda p: rewrite(p, lambda t: t.update(penalty=torch.ones(2))), "a penalty ()"),
    "an origin that is a text": (lambda p: rewrite(p, nothing, origin="x"), "origin is 'x', expected a mapping"),
    "an origin without a base": (lambda p: rewrite(p, nothing, origin={"adapter": "x"}), "it has no 'origin.base'"),
    "an origin of numbers": (
        lambda p: rewrite(p, nothing, origin={"adapter": "x", "base": {"left_out": 3}}),
        "origin.base.left_out is 3, expected a list",
    ),
    "not there": (lambda p: p.unlink(), "no such condition file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "cannot be read (Is a directory)"),
}


@pytest.mark.parametrize("check_base", (True, False))
@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused(damage, message, check_base, saved):
    _, _, path = saved
    damage(path)
    with pytest.raises(ValueError) as error:
        Condition.load(path, check_base=check_base)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_no_flipped_bit_is_accepted(saved):
    _, _, path = saved
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{path}: "):
            Condition.load(path)


def retrained(model):
    adapter_of(model).conditioner.mapping_net.head.bias.data.add_(0.1)
    return model


def biased(model):
    with torch.no_grad():
        model[3].bias.add_(1)
    return model


# name -> (the model, what the error says)
STRANGERS = {
    "another adapter and another base": (lambda: adapted(7, 3), "another adapter"),
    "another adapter": (lambda: adapted(0, 3), "another adapter"),
    "the same adapter on another base": (lambda: adapted(7, 1), "the base weights are not those"),
    "the same adapter on a base with another bias": (lambda: biased(adapted()), "other parameters or buffers"),
    "the same adapter, trained further": (lambda: retrained(adapted()), "another time of its training"),
    "other standardisation": (
        lambda: (lambda m: (adapter_of(m).calibrate(torch.randn(9, 5)), m)[1])(adapted()),
        "another adapter",
    ),
    "another wiring": (lambda: adapted(method="metalora-tr"), "another adapter"),
    "other settings of the condition": (lambda: adapted(clamp=2.0), "another adapter"),
    "other targets": (lambda: adapted(targets=("0",)), "another adapter"),
}


def use_values(adapter, condition):
    with adapter.using(condition):
        adapter.model(X)


# name -> a use of a condition by an adapter
USES = {
    "forward": lambda adapter, condition: adapter.model(X, condition=condition),
    "using": use_values,
    "fix": lambda adapter, condition: adapter.fix(condition),
    "delta": lambda adapter, condition: adapter.delta("0", condition),
    "merge": lambda adapter, condition: merge(adapter.model, condition),
    "export": lambda adapter, condition: adapter.export_lora("never-written", condition),
}
DERIVED = {
    "a part of it": lambda adapter, condition: adapter.model(X, condition=condition[0]),
    "its mean": lambda adapter, condition: adapter.model(X, condition=condition.mean()),
    "two of it": lambda adapter, condition: adapter.model(X, condition=Condition.stack([condition, condition])),
    "a pickle of it": lambda adapter, condition: adapter.model(X, condition=pickle.loads(pickle.dumps(condition))),
}


@pytest.mark.parametrize("stranger, message", STRANGERS.values(), ids=STRANGERS)
def test_the_condition_of_another_adapter_is_refused_by_a_forward(stranger, message, saved):
    _, condition, path = saved
    other = stranger()
    loaded = Condition.load(path)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}.*check_base=False"):
        other(X, condition=loaded)
    assert adapter_of(other).state.forward is None
    if set(condition.values) == set(adapter_of(other).conditioner.shapes) and "tr" not in adapter_of(other).method.name:
        by_hand = Condition(condition.values, condition.features, condition.penalty)
        assert torch.equal(other(X, condition=Condition.load(path, check_base=False)), other(X, condition=by_hand))


@pytest.mark.parametrize("use", (USES | DERIVED).values(), ids=USES | DERIVED)
def test_every_use_of_another_adapters_condition_is_refused(use, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, path = saved
    other = adapted(7, 3)
    adapter, loaded = adapter_of(other), Condition.load(path)
    with pytest.raises(ValueError, match=f"^{path}: the condition of another adapter"):
        use(adapter, loaded)
    assert adapter.state.forward is None and adapter.fixed_condition is None and not adapter.merged
    assert not (tmp_path / "never-written").exists()


# ---- what is accepted ------------------------------------------------------------------------------------------------
def through_a_file(model, tmp_path, dtype=None):
    """The adapter of a model, saved and loaded on a fresh base."""
    save(model, tmp_path / "adapter", dtype)
    fresh = base()
    load(fresh, tmp_path / "adapter")
    return fresh


def while_merged(model, tmp_path):
    merge(model, made(model))
    fresh = through_a_file(model, tmp_path)
    adapter_of(model).unmerge()
    return fresh


# name -> (the model that uses the file, from the model that made it)
HEIRS = {
    "itself": lambda model, tmp_path: model,
    "a copy": lambda model, tmp_path: copy.deepcopy(model),
    "saved and loaded": through_a_file,
    "saved and loaded twice": lambda model, tmp_path: through_a_file(through_a_file(model, tmp_path), tmp_path),
    "saved in float16": lambda model, tmp_path: through_a_file(model, tmp_path, torch.float16),
    "saved in bfloat16": lambda model, tmp_path: through_a_file(model, tmp_path, torch.bfloat16),
    "saved while merged": while_merged,
    "float64": lambda model, tmp_path: model.double(),
}


@pytest.mark.parametrize("heir", HEIRS.values(), ids=HEIRS)
def test_the_same_adapter_takes_its_condition(heir, saved, tmp_path):
    model, condition, path = saved
    user = heir(model, tmp_path)
    loaded = Condition.load(path)
    x = X.to(next(user.parameters()).dtype)
    assert torch.equal(user(x, condition=loaded), user(x, condition=condition))
    loaded.save(tmp_path / "again")
    user(x, condition=Condition.load(tmp_path / "again"))


def test_a_condition_in_memory_works_after_further_training(saved):
    model, condition, path = saved
    loaded = Condition.load(path)
    model(X, condition=loaded)
    retrained(model)
    assert torch.equal(model(X, condition=loaded), model(X, condition=condition))
    made(model).save(path)  # the file has the digest of this moment
    model(X, condition=Condition.load(path))


def test_the_numbers_of_the_adapter_are_hashed_once(saved, monkeypatch):
    import metalora.io.condition_file as module

    model, _, path = saved
    calls, digest = [], module.adapter_digest
    monkeypatch.setattr(module, "adapter_digest", lambda adapter: calls.append(adapter) or digest(adapter))
    loaded = Condition.load(path)
    for _ in range(3):
        model(X, condition=loaded)
        model(X, condition=Condition.load(path))
    assert len(calls) == 1


def test_a_trained_head_is_no_part_of_the_base(tmp_path):
    model = adapted()
    model[3].requires_grad_(True)
    made(model).save(tmp_path / "c")
    model[3].requires_grad_(False)
    model[3].weight.data.zero_()
    model(X, condition=Condition.load(tmp_path / "c"))


def test_a_fit_with_a_loaded_condition(saved):
    model, _, path = saved
    loaded = Condition.load(path)
    losses = fit(model, adapter_of(model), lambda k: model(X, condition=loaded).square().mean(), TrainConfig(steps=3))
    assert len(losses) == 3


def test_conditions_of_two_files_are_stacked_if_one_adapter_made_them(saved, tmp_path):
    model, condition, path = saved
    loaded = Condition.load(path)
    both = Condition.stack([loaded, condition])
    assert torch.equal(model(X, condition=both), model(X, condition=Condition.stack([condition, condition])))
    made(adapted(7, 3)).save(tmp_path / "other")
    with pytest.raises(ValueError, match="conditions of different adapters: .*c and .*other"):
        Condition.stack([loaded, Condition.load(tmp_path / "other")])


# name -> an adapter that may use the condition of another object; a base that differs is noticed by a file alone
IN_MEMORY = {name: heir for name, heir in HEIRS.items() if name != "float64"}
FOREIGN = {name: (model, message) for name, (model, message) in STRANGERS.items() if "base" not in name}


@pytest.mark.parametrize("heir", IN_MEMORY.values(), ids=IN_MEMORY)
def test_a_condition_in_memory_is_taken_by_the_same_adapter(heir, saved, tmp_path):
    model, condition, path = saved
    user = heir(model, tmp_path)
    assert torch.equal(user(X, condition=condition), user(X, condition=Condition.load(path)))


@pytest.mark.parametrize("use", (USES | DERIVED).values(), ids=USES | DERIVED)
def test_every_use_of_a_condition_of_another_adapter_in_memory_is_refused(use, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, condition, _ = saved
    adapter = adapter_of(adapted(7, 3))
    if use is DERIVED["a pickle of it"]:  # a copy does not say who made it
        return
    with pytest.raises(ValueError, match="^the condition of another adapter"):
        use(adapter, condition)
    assert adapter.state.forward is None and adapter.fixed_condition is None and not adapter.merged
    assert not (tmp_path / "never-written").exists()


@pytest.mark.parametrize("stranger", [model for model, _ in FOREIGN.values()], ids=FOREIGN)
def test_a_condition_in_memory_of_another_version_is_refused(stranger, saved):
    _, condition, _ = saved
    with pytest.raises(ValueError, match="the condition of another adapter"):
        stranger()(X, condition=condition)


def test_conditions_of_two_adapters_in_memory_are_not_stacked(saved):
    model, condition, _ = saved
    copied = copy.deepcopy(model)
    both = Condition.stack([condition, made(copied)])
    assert torch.equal(model(X, condition=both), copied(X, condition=both))
    with pytest.raises(ValueError, match="conditions of different adapters"):
        Condition.stack([condition, made(retrained(copied))])


def test_a_condition_in_memory_does_not_outlive_a_swap(saved, tmp_path):
    model, condition, path = saved
    save(retrained(adapted()), tmp_path / "other")
    adapter_of(model).swap(tmp_path / "other")
    with pytest.raises(ValueError, match="made before swap"):
        model(X, condition=condition)
    with pytest.raises(ValueError, match="made before swap"):
        condition.save(path)  # it would say that the new numbers made it
    made(model).save(path)
    model(X, condition=Condition.load(path))


def test_a_file_without_features_is_smaller_and_computes_the_same(saved, tmp_path):
    model, condition, path = saved
    condition.save(tmp_path / "small", features=False)
    loaded = Condition.load(tmp_path / "small")
    assert loaded.features.shape == (1, 0) and (tmp_path / "small").stat().st_size < path.stat().st_size
    assert torch.equal(model(X, condition=loaded), model(X, condition=condition))
    both = Condition.stack([loaded, condition])
    assert both.features.shape == (2, 0)
    torch.testing.assert_close(model(X, condition=both), model(X, condition=condition))


def test_a_condition_in_half_precision_and_back(saved):
    model, condition, _ = saved
    half = condition.to(dtype=torch.float16)
    assert {value.dtype for value in (*half.values.values(), half.features, half.penalty)} == {torch.float16}
    back = half.to("cpu", dtype=torch.float32)
    assert torch.allclose(model(X, condition=back), model(X, condition=condition), atol=1e-2)
    assert back.maker == condition.maker
    with pytest.raises(ValueError, match="cannot be converted to torch.int64"):
        condition.to(dtype=torch.int64)


def unsigned(condition, path):
    """A file as version 1 of the format was written."""
    tensors = {f"values/{key}": value for key, value in condition.values.items()}
    tensors |= {"features": condition.features, "penalty": condition.penalty}
    path.write_bytes(dump(tensors, {"metalora": json.dumps({"kind": "condition", "version": 1})}))


def by_hand(condition, path):
    Condition(condition.values, condition.features, condition.penalty).save(path)


@pytest.mark.parametrize("write", (unsigned, by_hand))
def test_a_file_that_names_no_adapter_is_loaded_with_a_warning(write, saved):
    model, condition, path = saved
    write(condition, path)
    with pytest.warns(UserWarning, match=f"{path}: does not say which adapter made the condition"):
        loaded = Condition.load(path)
    assert torch.equal(model(X, condition=loaded), model(X, condition=condition))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Condition.load(path, check_base=False)


MISFITS = {
    "no key": (lambda values: {}, "no value for '0.c'"),
    "a key less": (lambda values: {"0.c": values["0.c"]}, "no value for '2.c'"),
    "another shape": (
        lambda values: values | {"0.c": torch.zeros(1, 3)},
        r"'0.c' has shape \(1, 3\), expected \(1, 2\)",
    ),
    "unequal n": (lambda values: values | {"0.c": torch.zeros(2, 2)}, r"'0.c' has shape \(2, 2\), expected \(1, 2\)"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("change, message", MISFITS.values(), ids=MISFITS)
def test_a_condition_in_memory_that_does_not_fit_is_refused(change, message, use, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, condition, _ = saved
    misfit = Condition(change(condition.values), condition.features, condition.penalty)
    with pytest.raises(ValueError, match=message):
        use(adapter_of(model), misfit)
    adapter = adapter_of(model)
    assert adapter.state.forward is None and adapter.fixed_condition is None and not adapter.merged


SAVES = {
    "NaN": (lambda c: c.values["0.c"].fill_(torch.nan), "not finite"),
    "unequal n": (lambda c: c.values.update({"0.c": torch.zeros(3, 2)}), r"shape \(3, 2\), expected \(1, ...\)"),
}


@pytest.mark.parametrize("change, message", SAVES.values(), ids=SAVES)
def test_what_would_not_be_read_is_not_written(change, message, saved):
    _, condition, path = saved
    before = path.read_bytes()
    change(condition)
    with pytest.raises(ValueError, match=message):
        condition.save(path)
    assert path.read_bytes() == before
