"""Training on a second device: its numbers are those of the CPU, and a step waits once."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from metalora import AdapterConfig, attach
from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig, TwoSiteConfig
from metalora.training.loop import fit
from metalora.training.state_file import read_state
from support.query_value_blocks import Network
from support.second_device import CARD, counting_waits

STEPS = 5
SLOW, SLOW_RULES = pytest.mark.slow, ("accumulated", "bond by bond")
TARGETS = ("query", "value")
CHAIN = AdapterConfig("metatt-4d", 3, targets=TARGETS, init="ze-no-no-no")
RULES = {
    "none": (AdapterConfig("lora", 2, targets=TARGETS), {}),
    "accumulated": (AdapterConfig("lora", 2, targets=TARGETS), {"accumulate": 3, "clip": 0.5}),
    "sweeps": (CHAIN, {"rank_schedule": RankScheduleConfig(steps=(2, 4), ranks=(2, 1), importance="sensitivity")}),
    "budget": (
        AdapterConfig("adalora", 3, targets=TARGETS),
        {"rank_budget": RankBudgetConfig(final=1, start=1, hold=2, every=1)},
    ),
    "bond by bond": (CHAIN, {"two_site": TwoSiteConfig(bond_steps=1)}),
}


def trained(config, settings, device, path=None, steps=STEPS):
    """Train on batches that lie on the device; (losses, factors on the CPU)."""
    torch.manual_seed(0)
    model = Network().double().to(device)
    adapter = attach(model, config)
    generator = torch.Generator().manual_seed(1)
    batches = torch.randn(3 * STEPS, 8, 6, generator=generator).double().to(device)
    step_loss = lambda k: F.mse_loss(model(batches[k]), batches[k][:, :3])  # noqa: E731
    train = TrainConfig(steps=STEPS, lr=1e-2, checkpoint_every=1, **settings)
    losses = fit(model, adapter, step_loss, train, checkpoint=path, on_step=lambda step, loss: step + 1 == steps)
    return losses, {key: value.detach().cpu() for key, value in adapter.factors.items()}


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=[SLOW] * (rule in SLOW_RULES)) for rule in RULES])
def test_a_training_and_its_continuation(rule, tmp_path):
    losses, factors = trained(*RULES[rule], CARD)
    expected, right = trained(*RULES[rule], "cpu")
    assert losses == pytest.approx(expected, rel=1e-6)
    for key, value in factors.items():
        torch.testing.assert_close(value, right[key], rtol=1e-5, atol=1e-7)
    trained(*RULES[rule], CARD, tmp_path / "run.pt", steps=3)
    again, same = trained(*RULES[rule], CARD, tmp_path / "run.pt")
    assert again == losses and all(torch.equal(same[key], value) for key, value in factors.items())


@pytest.mark.parametrize("first, second", [(CARD, "cpu"), ("cpu", CARD)])
def test_a_run_continues_on_another_device(first, second, tmp_path):
    whole, _ = trained(*RULES["none"], "cpu")
    trained(*RULES["none"], first, tmp_path / "run.pt", steps=3)
    state = read_state(tmp_path / "run.pt")  # as a machine without the first device can read it
    assert {leaf.device.type for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)} == {"cpu"}
    losses, _ = trained(*RULES["none"], second, tmp_path / "run.pt")
    assert losses == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("rule", ["none", "accumulated"])
def test_a_step_waits_once(rule):
    config, settings = RULES[rule]
    with counting_waits() as waits:
        trained(config, settings, CARD)
    in_steps = Counter(wait for wait in waits if wait.startswith("training/"))
    assert in_steps == {wait: STEPS for wait in in_steps if "gradients.py" in wait} and len(in_steps) == 1, waits


@pytest.mark.parametrize("device", [CARD, "cpu"])
def test_the_precision_is_that_of_the_device_of_the_model(device):
    """This process has two kinds of device; autocast lowers the operations of the one that the model is on."""
    torch.manual_seed(0)
    head, seen = nn.Linear(6, 2).to(device), []

    def step_loss(k):
        output = head(torch.ones(3, 6, device=device))
        seen.append(output.dtype)
        return output.float().square().mean()

    for precision in ("bf16", "no"):
        fit(head, None, step_loss, TrainConfig(steps=1, mixed_precision=precision), extra_module=head)
    assert seen == [torch.bfloat16, torch.float32]
