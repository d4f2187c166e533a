"""A method as a configuration asks for it: what is generated or frozen, how factors start, what differs by example."""

import pytest

from metalora import AdapterConfig, ConditionConfig
from metalora.methods.registry import METHODS
from metalora.methods.resolve import resolve


def test_generated_factors_are_those_of_the_method_unless_configured():
    assert resolve(AdapterConfig("metalora-cp")).generated == ("c",)
    assert resolve(AdapterConfig("metalora-cp", generated=("A", "c"))).generated == ("A", "c")
    assert resolve(AdapterConfig("metalora-cp", condition=ConditionConfig(scope="constant"))).generated == ()


def test_frozen_factors_are_those_of_the_method_its_starts_and_the_configured_ones():
    assert resolve(AdapterConfig("vera", frozen=("d",))).frozen == {"A", "B", "d"}
    assert resolve(AdapterConfig("quanta")).frozen == {"T12_0", "T13_0", "T23_0"}
    assert resolve(AdapterConfig("pissa")).frozen == {"A_0", "B_0"}


def test_a_learned_change_starts_at_zero_and_its_start_as_declared():
    inits = resolve(AdapterConfig("quanta", init={"T12": "normal:0.1"})).inits
    assert inits["T12"] == "zeros" and inits["T12_0"] == "normal:0.1" and inits["T13_0"] == "gate"


@pytest.mark.parametrize("method", METHODS)
def test_every_factor_of_the_network_has_an_initialisation(method):
    resolved = resolve(AdapterConfig(method))
    assert set(resolved.inits) == set(resolved.method.network.factors)


def test_factors_that_differ_by_example():
    assert resolve(AdapterConfig("metatt-4+1d")).per_example == ()
    assert resolve(AdapterConfig("metatt-4+1d", tasks=3)).per_example == ("G3",)
    assert resolve(AdapterConfig("mtl-lora", tasks=2, generated=("w",))).per_example == ("w", "D")


@pytest.mark.parametrize("rule, scale", [(None, 2.0), ("alpha/r", 2.0), ("alpha/sqrt(r)", 4.0), ("alpha", 8.0)])
def test_the_scale_is_by_the_rank_of_the_target(rule, scale):
    assert resolve(AdapterConfig("lora", rank=9, alpha=8.0, scale=rule)).scale_for(4) == scale
    assert resolve(AdapterConfig("lora", rank=9, scale=rule)).scale_for(4) == 1.0


@pytest.mark.parametrize("method, factor, hides", [("moe-lora", "g", False), ("lora", "B", True), ("lora", "A", False)])
def test_which_generated_factors_start_alike_for_all_features(method, factor, hides):
    """Otherwise the adapter would not start as the base: B is zero, a gate may be anything."""
    assert resolve(AdapterConfig(method, generated=(factor,))).hides_features(factor) == hides
