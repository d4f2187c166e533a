"""Law 10: the number of parameters is the closed form, and the count that was published."""

import copy
import functools

import pytest
from torch import nn

from metalora import (
    AdapterConfig,
    ConditionConfig,
    attach,
    count_params,
    find_targets,
)
from metalora.methods.registry import METHODS
from metalora.zoo import load_model
from support.cases import attach_case
from support.laws import (
    EVERY_CELL,
    GOLDEN,
)

QUERY_VALUE = {"r": ("query", "value"), "l": ("q_proj", "v_proj")}


@EVERY_CELL
def test_10_num_params_is_the_closed_form(case, layer):
    model, adapter, x, _ = attach_case(case, layer)
    config = case.config()
    [target] = find_targets(layer.base(), ("0",))
    assert adapter.num_params() == count_params(config, [target], 7) == sum(p.numel() for p in adapter.parameters())
    assert adapter.num_params() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(case.rank, int):
        sizes = target.sizes
        kernel = sizes.get("kh", 1) * sizes.get("kw", 1)
        numbers = dict(I=sizes["in"], O=sizes["out"], K=kernel, R=case.rank, N=config.experts, L=1, M=1, T=case.tasks)
        numbers |= dict(H=sizes["out"] // config.head_dim, J=config.head_dim)
        numbers |= adapter.layout.targets["0"].sizes
        method = METHODS[case.method]
        [method] = [part.method for part in method.components if part.accepts(target.heads)] or [method]
        assert count_params(config, [target]) == eval(method.count, numbers)
        if case.has_pair:
            assert model[0].form.rank <= eval(method.export, numbers)


@pytest.mark.parametrize(
    "row", [r for r in GOLDEN if "layer" in r], ids=lambda row: f"{row['model']}-{row['method']}-r{row['rank']}"
)
def test_10_golden_counts(row):
    """Numbers worked out by hand, and those that the papers print."""
    made = nn.Linear(row["in"], row["out"], device="meta")
    if row["layer"] == "conv2d":
        made = nn.Conv2d(row["in"], row["out"], row["kernel"], device="meta")
    model = nn.Sequential(*[copy.deepcopy(made) for _ in range(row["targets"])])
    constant = ConditionConfig(scope="constant")
    config = AdapterConfig(
        method=row["method"], rank=row["rank"], experts=row.get("experts", 4), targets=("*",), condition=constant
    )
    assert count_params(config, find_targets(model, ("*",))) == row["params"]
    if row["in"] < 4096:  # the factors of the largest would be made on the CPU
        assert attach(model, config).num_params() == row["params"]


@functools.cache
def architecture(name):
    return load_model(name, weights=False)


@pytest.mark.parametrize(
    "row",
    [r for r in GOLDEN if "layer" not in r],
    ids=lambda row: f"{row['model']}-{row['method']}-r{row['rank']}-{row.get('tasks', 1)}",
)
def test_10_golden_counts_of_shared_networks(row):
    """Well-known transformers (query and value, if not said), from their sizes alone: what the papers print."""
    options = {key: row[key] for key in ("tasks", "widths", "experts", "digits", "scale", "frozen") if key in row}
    rank = tuple(row["rank"]) if isinstance(row["rank"], list) else row["rank"]
    config = AdapterConfig(row["method"], rank, targets=row.get("targets") or QUERY_VALUE[row["model"][0]], **options)
    assert count_params(config, find_targets(architecture(row["model"]), config.targets)) == row["params"]
