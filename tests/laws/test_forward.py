"""Law 2: the forward is that of the base plus the dense Delta W of an independent oracle, example by example."""

import pytest
import torch

from oracles.dense import BOTTLENECKS
from support.adapters import assert_close
from support.cases import CASES, SIZES, attach_case, factors_of, inputs_of_size, oracle_bias, oracle_delta
from support.laws import EVERY_BOTTLENECK, EVERY_DELTA
from support.layers import BATCH, LAYERS, apply


@EVERY_DELTA
def test_2_delta_is_the_oracle_and_forward_is_base_plus_it(case, layer):
    model, adapter, _, options = attach_case(case, layer)
    base, condition = model[0].base, options.get("condition")
    deltas = [oracle_delta(case, layer, adapter, condition, i) for i in range(BATCH)]
    shifts = [oracle_bias(case, layer, adapter, condition, i) for i in range(BATCH)]
    assert all(delta.abs().max() > 1e-3 for delta in deltas)
    got = adapter.delta("0", **options)
    assert_close(got, torch.stack(deltas) if case.per_example else deltas[0], name="Delta W")
    assert got.shape[-base.weight.ndim :] == base.weight.shape
    for size in SIZES:
        x = inputs_of_size(adapter, layer, size)
        rows = zip(x.split(1), deltas, shifts, strict=True)
        want = [apply(base, row, base.weight + delta) + shift for row, delta, shift in rows]
        assert_close(model(x, **options), torch.cat(want), name=size)


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
