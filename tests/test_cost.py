"""Ranks for a budget: TensLoRA's isoparameter protocol against LoRA at r = 8 on RoBERTa-base."""

import dataclasses
import functools

import pytest

from metalora import AdapterConfig
from metalora.cost import matched, summarise
from metalora.zoo import load_model

BUDGET = 442368  # LoRA, r = 8, query, key and value
FOUND = {  # by exhaustive search over ranks whose large ones are equal
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


@pytest.mark.parametrize("method", FOUND)
def test_the_largest_ranks_within_a_budget(method):
    config = AdapterConfig(method, targets="query,key,value")
    found = matched(roberta(), config, BUDGET)
    ranks, params = FOUND[method]
    said = summarise(roberta(), found)
    assert list(said["ranks"].values()) == ranks and said["parameters"] == params
    above = dataclasses.replace(found, rank=found.rank + 1)
    assert summarise(roberta(), above)["parameters"] > BUDGET


def test_a_rank_that_experts_share_is_a_multiple_of_them():
    found = matched(roberta(), AdapterConfig("moe-lora", targets="query", experts=4), 12 * (12 * 1536 + 4))
    assert found.rank == 12 and summarise(roberta(), found)["ranks"] == {"r": 3}


def test_a_budget_above_every_rank_is_refused():
    config = AdapterConfig("tenslora-qkv-depth", targets="query")
    with pytest.raises(ValueError, match="'tenslora-qkv-depth' has .* numbers at most, at any rank"):
        matched(roberta(), config, 10**12)


@pytest.mark.parametrize("method, most", [("lotr", 768), ("quanta", None)])
def test_a_budget_of_exactly_the_most_is_met_by_the_smallest_rank_that_has_it(method, most):
    config = AdapterConfig(method, targets="query")
    with pytest.raises(ValueError, match="numbers at most, at any rank") as error:
        matched(roberta(), config, 10**12)
    numbers = int(str(error.value).split(" has ")[1].split()[0])
    found = matched(roberta(), config, numbers)
    assert summarise(roberta(), found)["parameters"] == numbers and found.rank == (most or 1)


def test_a_rank_above_the_widths_is_found_for_what_takes_any():
    assert matched(roberta(), AdapterConfig("vera", targets="query,value"), 43008).rank == 1024
