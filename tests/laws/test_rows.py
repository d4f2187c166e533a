"""Law 6, by rows: every row of a batch, or token of a packed batch, gets what it gets alone under its condition."""

import pytest
import torch

from support.adapters import assert_close
from support.cases import CASES, attach_case
from support.laws import GENERATED
from support.layers import LAYERS

ROWS = torch.tensor([2, 0, 3, 2, 1, 0, 0])
TOKENWISE = ("linear", "conv1d_gpt2", "embedding")
OF_TOKENS = {
    f"{name}-{kind}": (case, LAYERS[kind])
    for name, case in GENERATED.items()
    for kind in TOKENWISE
    if case.fits(LAYERS[kind])
}
OF_EXAMPLES = {
    f"{name}-{kind}": (CASES[name], LAYERS[kind])
    for name in ("metalora-cp-c", "metalora-tr-C", "metatt-4+1d-tasks", "film-g", "dora-B")
    for kind in ("linear", "conv2d", "embedding")
    if name in CASES and CASES[name].fits(LAYERS[kind])
}


def tokens_of(layer):
    x = layer.inputs("many", batch=1)  # (1, 7) ids or (1, 7, channels)
    assert x.shape[1] == len(ROWS)
    return x


@pytest.mark.parametrize("case, layer", OF_TOKENS.values(), ids=OF_TOKENS)
def test_a_packed_batch_is_each_token_alone(case, layer):
    model, adapter, _, condition = attach_case(case, layer)
    condition, x = condition["condition"], tokens_of(layer)
    with adapter.using(condition, rows=ROWS, packed=True):
        got = model(x)
        of_a_part = model[0](x)
    alone = torch.cat([model(x[:, t : t + 1], condition=condition[int(row)]) for t, row in enumerate(ROWS)], 1)
    assert got.shape == alone.shape
    assert_close(got, alone)
    assert_close(of_a_part, alone)
    assert not torch.allclose(alone, model(x, condition=condition[1]))  # the conditions differ


@pytest.mark.parametrize("case, layer", OF_EXAMPLES.values(), ids=OF_EXAMPLES)
def test_a_row_is_the_example_alone(case, layer):
    model, adapter, _, condition = attach_case(case, layer)
    condition, x = condition["condition"], layer.inputs(batch=len(ROWS))
    with adapter.using(condition, rows=ROWS):
        got = model(x)
    alone = [model(x[k : k + 1], condition=condition[int(row)]) for k, row in enumerate(ROWS)]
    assert_close(got, torch.cat(alone))


def test_a_packed_batch_has_gradients_of_each_token_alone():
    model, adapter, _, _ = attach_case(CASES["metatt-4+1d-tasks"], LAYERS["linear"])
    x, rows = tokens_of(LAYERS["linear"]), torch.tensor([2, 0, 1, 2, 1, 0, 0])
    learned = list(adapter.learned.values())

    def gradients(run):
        return torch.autograd.grad(run().square().sum(), learned)

    def packed():
        with adapter.using(adapter.task(range(3)), rows=rows, packed=True):
            return model(x)

    def alone():
        return torch.cat([model(x[:, t], task_ids=[int(row)]) for t, row in enumerate(rows)])

    for left, right in zip(gradients(packed), gradients(alone), strict=True):
        assert_close(left, right)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([0, 4], r"rows: \[0, 4\] are not all numbers of conditions, 0..3"),
        ([-1, 0], "are not all numbers of conditions"),
        ([0.0, 1.0], "expected the number of a condition for each row"),
        ([[0, 1]], r"\(m,\), got \(1, 2\)"),
        (None, "packed=True needs rows"),
    ],
)
def test_rows_that_name_no_condition_are_refused(rows, message):
    _, adapter, _, condition = attach_case(CASES["metalora-cp-c"], LAYERS["linear"])
    with pytest.raises(ValueError, match=message), adapter.using(condition["condition"], rows=rows, packed=True):
        pass


def test_a_layer_that_may_mix_tokens_is_refused_before_anything_runs():
    model, adapter, _, condition = attach_case(CASES["metalora-cp-c"], LAYERS["conv1d"])
    with pytest.raises(ValueError, match=r"packed=True: target '0' \(Conv1d\) may mix the tokens"):
        with adapter.using(condition["condition"], rows=[0, 1], packed=True):
            model(LAYERS["conv1d"].inputs(batch=1))
    assert adapter.current().values is None


@pytest.mark.parametrize("shape", ((2, 7, 6), (1, 6, 6), (1, 7, 7, 6)))
def test_inputs_that_are_not_the_packed_batch_are_refused(shape):
    model, adapter, _, condition = attach_case(CASES["metalora-cp-c"], LAYERS["linear"])
    with adapter.using(condition["condition"], rows=ROWS, packed=True):
        with pytest.raises(ValueError, match=r"target '0': rows name the conditions of 7 tokens"):
            model(torch.randn(shape).double())
