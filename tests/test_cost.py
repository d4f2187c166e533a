"""Ranks for a budget: TensLoRA's isoparameter protocol against LoRA at r = 8 on RoBERTa-base."""

import dataclasses
import functools

import pytest

from metalora import AdapterConfig
from metalora.cost import match_parameters, summarise
from metalora.zoo import load_model

BUDGET = 442368  # LoRA, r = 8, query, key and value
EXPECTED = {  # by exhaustive search over ranks whose large ones are equal
    "tenslora-att": ([12, 12, 12], 426816),
    "tenslora-qkv": ([22, 22, 3], 423036),
    "tenslora-depth": ([63, 63, 12], 433620),
    "tenslora-att-qkv": ([22, 22, 12, 3], 430572),
    "tenslora-att-depth": ([29, 29, 12, 12], 436560),
    "tenslora-qkv-depth": ([91, 91, 3, 12], 438045),
    "tenslora-att-qkv-depth": ([31, 31, 12, 3, 12], 441241),
    "lora": ([8], BUDGET),
}


@functools.cache
def roberta():
    return load_model("roberta-base", weights=False)


@pytest.mark.parametrize("method", EXPECTED)
def test_the_largest_ranks_within_a_budget(method):
    config = AdapterConfig(method, targets="query,key,value")
    matched = match_parameters(roberta(), config, BUDGET)
    ranks, params = EXPECTED[method]
    summary = summarise(roberta(), matched)
    assert list(summary.ranks.values()) == ranks and summary.parameters == params
    above = dataclasses.replace(matched, rank=matched.rank + 1)
    assert summarise(roberta(), above).parameters > BUDGET


def test_a_rank_that_experts_share_is_a_multiple_of_them():
    matched = match_parameters(roberta(), AdapterConfig("moe-lora", targets="query", experts=4), 12 * (12 * 1536 + 4))
    assert matched.rank == 12 and summarise(roberta(), matched).ranks == {"r": 3}


def test_a_budget_above_every_rank_is_refused():
    config = AdapterConfig("tenslora-qkv-depth", targets="query")
    with pytest.raises(ValueError, match="'tenslora-qkv-depth' has .* numbers at most, at any rank"):
        match_parameters(roberta(), config, 10**12)


@pytest.mark.parametrize("method, most", [("lotr", 768), ("quanta", None)])
def test_a_budget_of_exactly_the_most_is_met_by_the_smallest_rank_that_has_it(method, most):
    config = AdapterConfig(method, targets="query")
    with pytest.raises(ValueError, match="numbers at most, at any rank") as error:
        match_parameters(roberta(), config, 10**12)
    numbers = int(str(error.value).split(" has ")[1].split()[0])
    matched = match_parameters(roberta(), config, numbers)
    assert summarise(roberta(), matched).parameters == numbers and matched.rank == (most or 1)


def test_a_rank_above_the_widths_is_found_for_what_takes_any():
    assert match_parameters(roberta(), AdapterConfig("vera", targets="query,value"), 43008).rank == 1024


@pytest.mark.parametrize("method", ["lora", "multi-lora", "moe-lora", "lotr", "tenslora-qkv-depth"])
@pytest.mark.parametrize("budget", [1, 100_000, BUDGET])
def test_the_smallest_rank_that_reaches_a_budget(method, budget):
    config = AdapterConfig(method, targets="query,key,value", experts=2)
    reached = match_parameters(roberta(), config, budget, at_least=True)
    step = 2 if method == "moe-lora" else 1
    assert summarise(roberta(), reached).parameters >= budget and reached.rank % step == 0
    if reached.rank > step:
        below = dataclasses.replace(reached, rank=reached.rank - step)
        assert summarise(roberta(), below).parameters < budget


def test_a_budget_that_no_rank_reaches_is_refused():
    config = AdapterConfig("lora", targets="query")
    with pytest.raises(ValueError, match="'lora' cannot reach 1000000000000 parameters on these targets"):
        match_parameters(roberta(), config, 10**12, at_least=True)
