"""Law 2: the forward is that of the base plus the dense Delta W of an independent oracle, example by example."""

import pytest
import torch

from oracles.dense import BOTTLENECKS
from support.adapters import assert_close
from support.cases import CASES, attach_case, factors_of, oracle_bias, oracle_delta
from support.laws import EVERY_BOTTLENECK, EVERY_DELTA, EVERY_SIZE
from support.layers import LAYERS, apply


@EVERY_SIZE
@EVERY_DELTA
def test_2_forward_is_base_plus_dense_delta(case, layer, size):
    model, adapter, x, condition = attach_case(case, layer, size)
    got = model(x, **condition)
    base = model[0].base
    for i in range(len(x)):
        dense = oracle_delta(case, layer, adapter, condition.get("condition"), i)
        assert dense.abs().max() > 1e-3
        shift = oracle_bias(case, layer, adapter, condition.get("condition"), i)
        assert_close(got[i : i + 1], apply(base, x[i : i + 1], base.weight + dense) + shift)


@pytest.mark.parametrize("kind", ("linear", "conv1d", "conv2d"))
def test_2_the_sizes_run_both_paths(kind):
    """The base itself runs beside the cut, and does not run where W + Delta W is formed."""
    for size, want in (("many, cut", 0), ("many", 1)):
        model, adapter, x, _ = attach_case(CASES["lora"], LAYERS[kind], size)
        ran, layer = [], model[0]
        layer.apply_weight = lambda x, weight, ran=ran, plain=layer.apply_weight: ran.append(1) or plain(x, weight)
        with torch.no_grad():
            model(x)
        assert len(ran) == want


@EVERY_BOTTLENECK
def test_2_a_bottleneck_is_a_function_of_the_output(case, layer):
    model, adapter, x, condition = attach_case(case, layer, "many")
    got = model(x, **condition)
    axis = 1 if layer.positions else -1
    for i in range(len(x)):
        z = model[0].base(x[i : i + 1]).movedim(axis, -1)
        factors = factors_of(adapter, "0", condition.get("condition"), i)
        want = z + (case.alpha or 1.0) * BOTTLENECKS[case.method](z, **factors)
        assert (want - z).abs().max() > 1e-3
        assert_close(got[i : i + 1], want.movedim(-1, axis))


@EVERY_DELTA
def test_2_delta_is_the_oracle_in_the_base_layout(case, layer):
    model, adapter, x, condition = attach_case(case, layer)
    want = torch.stack([oracle_delta(case, layer, adapter, condition.get("condition"), i) for i in range(len(x))])
    got = adapter.delta("0", **condition)
    assert_close(got, want if case.per_example else want[0])
    assert got.shape[-model[0].base.weight.ndim :] == model[0].base.weight.shape
