"""What a search chooses from: what fits the network, and always what there would be without a search."""

import pytest
from optuna.trial import FixedTrial
from torch import nn

from metalora import AdapterConfig
from metalora.learner import SweepConfig
from metalora.learner.finetuning import PLAIN_METHODS, usual_rate
from metalora.learner.sweeps.space import Choice, Space
from support.small_searches import small_network


def space(base=AdapterConfig(), model=None, **choices):  # noqa: B008 (frozen)
    return Space(model or small_network(), base, usual_rate, SweepConfig(**choices), PLAIN_METHODS)


def test_without_names_the_methods_and_targets_are_those_that_fit_and_differ():
    found = space()
    assert found.methods == ["lora", "dora"]  # metatt-4d needs a stack of layers
    assert found.targets["lora"] == ["all"]  # "linear" would be the same layers
    assert "metatt-4d at all" in found.left_out


def test_a_network_with_convolutions_has_more_sets():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2))
    assert space(model=model).targets["lora"] == ["all", "linear", "conv"]


def test_the_first_choice_is_that_without_a_search_even_if_nobody_names_it():
    found = space(AdapterConfig("dora", rank=3, targets=("0", "2")), methods=("lora",), ranks=(4,), targets=("0",))
    assert found.first == Choice("dora", 3, "0,2", 2e-3)
    assert found.ranks == [3, 4] and found.methods == ["dora", "lora"]
    assert found.suggest(FixedTrial(found.first_parameters())) == found.first


def test_the_rates_are_around_the_usual_one_of_each_method():
    found = space(methods=("full", "head"))
    assert found.rate_range("lora") == (2e-3 / 8, 2e-3 * 8) and found.rate_range("full") == (5e-5 / 8, 5e-5 * 8)
    assert space(rates=(0.01, 0.1)).rate_range("lora") == (2e-3, 0.1)
    full = found.suggest(FixedTrial({"method": "full", "lr of full": 1e-4}))
    assert full == Choice("full", None, None, 1e-4)


def test_a_rank_above_that_of_the_layer_is_lowered():
    assert Choice("lora", 64, "0", 0.1).adapter(AdapterConfig(seed=5)) == AdapterConfig(
        "lora", 64, targets="0", clip_rank=True, seed=5
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"methods": ("lorra",)}, "sweep: method lorra fits none of the targets: .*did you mean 'lora'"),
        ({"targets": ("qury",)}, "sweep: targets qury fit none of the methods: target 'qury' matches no module"),
        ({"methods": ("metatt-4d",)}, "sweep: method metatt-4d fits none of the targets: "),
        ({"rates": (0.1, 0.01)}, "SweepConfig.rates .* expected the smallest and the largest"),
        ({"ranks": ()}, "SweepConfig.ranks is empty, expected one rank at least"),
    ],
)
def test_a_choice_that_does_not_exist_is_one_error(choices, message):
    with pytest.raises(ValueError, match=message):
        space(**choices)


def test_an_adapter_that_does_not_fit_is_refused_before_the_first_trial():
    with pytest.raises(ValueError, match="target 'qury' matches no module of Sequential"):
        space(AdapterConfig("lora", targets="qury"), targets=("0",))


def test_an_adapter_with_several_ranks_is_not_searched():
    with pytest.raises(ValueError, match="the rank is .* expected one number"):
        space(AdapterConfig("metatt-4d", rank={"r1": 2}))
