"""The laws for matrices that no layer multiplies: experts, routers, attention's projections, lists of parameters."""

import copy
import pickle

import pytest
import torch

from metalora import AdapterConfig, attach, count_params, detach, find_targets, load, merge, save, unmerge
from metalora.adapters.held_matrix import held_matrix
from metalora.io.merged_model import merged_state
from support.adapters import assert_close, attach_random, randomise
from support.holders import HOLDERS, with_weights
from support.unchanged import look, unchanged

METHODS = {
    "lora": dict(rank=2, alpha=3.0),
    "metatt-4d": dict(rank=2),
    "tenslora-qkv-depth": dict(rank=2),
    "lotr": dict(rank=2),
    "dora": dict(rank=2),
    "ia3": dict(rank=1),
    "quanta": dict(rank=8),
    "pissa": dict(rank=2),
}
CELLS = [(method, "experts") for method in METHODS]
CELLS += [(method, holder) for holder in HOLDERS for method in ("lora", "metatt-4d", "dora") if holder != "experts"]
EVERY_CELL = pytest.mark.parametrize("method, holder", CELLS, ids=[f"{method}-{holder}" for method, holder in CELLS])


def attached(method, holder, random=True):
    """A plain model, a copy of it with an adapter, the adapter, and an input."""
    torch.manual_seed(0)
    kind = HOLDERS[holder]
    plain = kind.base()
    model = copy.deepcopy(plain)
    adapter = attach(model, AdapterConfig(method, targets=kind.targets, clip_rank=True, **METHODS[method]))
    if random:
        randomise(adapter, 0.3)
    return plain, model, adapter, kind.inputs()


@EVERY_CELL
def test_1_starts_as_the_base(method, holder):
    plain, model, adapter, x = attached(method, holder, random=False)
    assert len(adapter.targets) == 2 * HOLDERS[holder].count
    with torch.no_grad():
        assert_close(model(x), plain(x))


@EVERY_CELL
def test_2_forward_is_that_of_the_plain_model_with_w_plus_delta(method, holder):
    plain, model, adapter, x = attached(method, holder)
    before = plain(x)
    dense = with_weights(plain, {path: adapter.delta(path) for path in adapter.targets})
    assert (dense(x) - before).abs().max() > 1e-3
    for grad in (True, False):  # without gradients attention takes another way in eval mode
        with torch.set_grad_enabled(grad):
            assert_close(model(x), dense(x))
    assert_close(model.train()(x) if holder != "encoder" else model(x), dense(x))


@EVERY_CELL
def test_3_merge_is_the_forward_and_unmerge_restores_the_bits(method, holder):
    plain, model, adapter, x = attached(method, holder)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    live = model(x)
    written = copy.deepcopy(plain)
    written.load_state_dict(merged_state(model))  # the names of the plain model
    assert_close(written(x), live)
    merge(model)
    assert_close(model(x), live)
    with pytest.raises(ValueError, match="is merged"), adapter.disabled():
        pass
    unmerge(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with adapter.disabled():
        assert_close(model(x), plain(x))


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("method", ("lora", "metatt-4d", "dora"))
def test_4_save_load_is_bit_equal_merged_or_not(method, holder, tmp_path):
    plain, model, adapter, x = attached(method, holder)
    save(model, tmp_path / "adapter")
    merge(model)
    save(model, tmp_path / "merged")
    unmerge(model)
    for name in ("adapter", "merged"):
        other = copy.deepcopy(plain)
        load(other, tmp_path / name)
        assert torch.equal(other(x), model(x))
    changed = with_weights(plain, {next(iter(adapter.targets)): torch.ones((), dtype=torch.float64)})
    with pytest.raises(ValueError, match="base weights are not those"):
        load(changed, tmp_path / "adapter")


@EVERY_CELL
def test_5_every_factor_has_the_gradient_of_the_dense_computation(method, holder):
    plain, model, adapter, x = attached(method, holder)
    model(x).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in adapter.named_parameters()}
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "owned" not in name)
    adapter.zero_grad()
    weights = {}
    for path in adapter.targets:
        matrix = held_matrix(plain, path)
        name = next(n for n, p in plain.named_parameters() if p is matrix.parameter)
        weight = weights.setdefault(name, [*matrix.parameter.detach()] if matrix.index is not None else [None])
        weight[matrix.index or 0] = matrix.weight.detach() + adapter.delta(path)
    stacked = {n: torch.stack(w) if plain.get_parameter(n).ndim == 3 else w[0] for n, w in weights.items()}
    torch.func.functional_call(plain, stacked, (x,)).square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert_close(gradients[name], parameter.grad, 1e-8)


@EVERY_CELL
def test_9_copies_are_independent_and_detach_gives_the_module_back(method, holder):
    plain, model, adapter, x = attached(method, holder)
    want = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), want)
        randomise(twin.get_submodule(next(n for n, m in model.named_modules() if m is adapter)))
        assert not torch.equal(twin(x), want) and torch.equal(model(x), want)
    attributes = {path: sorted(vars(module)) for path, module in plain.named_modules()}
    detach(model)
    assert torch.equal(model(x), plain(x))
    assert {path: sorted(vars(module)) for path, module in model.named_modules()} == attributes


@pytest.mark.parametrize("holder", HOLDERS)
def test_9_detach_leaves_no_trace(holder):
    kind = HOLDERS[holder]
    model = kind.base()
    with unchanged(model):
        attach_random(model, AdapterConfig("lora", 2, targets=kind.targets))
        model(kind.inputs())
        detach(model)
    assert look(model)[1].keys() == kind.base().state_dict().keys()


@EVERY_CELL
def test_10_num_params_is_the_closed_form(method, holder):
    plain, model, adapter, _ = attached(method, holder)
    assert adapter.num_params() == count_params(adapter.config, find_targets(plain, HOLDERS[holder].targets))
    assert adapter.num_params() == sum(p.numel() for p in model.parameters() if p.requires_grad)
