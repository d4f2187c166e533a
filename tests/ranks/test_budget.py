"""AdaLoRA's budget of singular values: the paper's schedule, PEFT's allocator step by step, and runs of our loop."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig, from_dict
from metalora.ranks.budget import RankBudget, budget
from metalora.training.controllers import trainer_callback
from metalora.training.loop import fit
from support.resume import resumes_to_the_same_bits

RANK, STEPS, GAMMA = 4, 12, 0.3
RULE = RankBudgetConfig(final=2, start=2, hold=3, every=2, beta1=0.8, beta2=0.7, orthogonality=GAMMA)


class Net(nn.Module):
    """Two layers that return what PEFT expects of a model: an output with its loss."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x, labels):
        logits = self.two(torch.tanh(self.one(x)))
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, labels))


def base():
    torch.manual_seed(0)
    return Net().double().eval()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator).double(), torch.randint(5, (16,), generator=generator)


def made(method="adalora", **changes):
    """(model, adapter, step -> loss)"""
    model = base()
    options = dict(targets=("one", "two"), condition=ConditionConfig(scope="constant")) | changes
    adapter = attach(model, AdapterConfig(method, RANK, **options))
    return model, adapter, lambda step: model(*batch(step % 3)).loss


def numbers(adapter):
    return {key: value.detach().clone() for key, value in adapter.factors.items()}


# ---- the schedule ---------------------------------------------------------------------------------------------------
def test_the_budget_of_metatts_runs():
    """RoBERTa, 24 targets, 8 to 4 singular values, 2000 steps, t_i 200, t_f 1000: 96 + 96 (1 - (t - 200) / 800)^3."""
    rule = RankBudgetConfig(final=4, start=200, hold=1000)
    want = {1: 192, 200: 192, 210: 188, 300: 160, 400: 136, 600: 108, 800: 97, 990: 96, 1000: 96, 1001: 96, 2000: 96}
    assert {step: budget(rule, step, 2000, 192, 96) for step in want} == want


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(final=5), "final is 5 for each of 2 targets, expected 1 to 4, what each has now"),
        (dict(start=9, hold=3), "leave none of 12 steps"),
    ],
)
def test_budgets_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        RankBudget(made()[0], replace(RULE, **changes), STEPS)


def test_a_method_without_singular_values_has_no_budget():
    for method in ("lora", "metatt-4d", "metalora-tr"):
        with pytest.raises(ValueError, match=f"{method!r} has no singular values"):
            RankBudget(made(method, alpha=1.0)[0] if method != "metatt-4d" else numbered(method), RULE, STEPS)
    with pytest.raises(ValueError, match="no adapter"):
        RankBudget(base(), RULE, STEPS)


def numbered(method):
    """A model with two layers, for methods that number them."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    attach(model, AdapterConfig(method, RANK, condition=ConditionConfig(scope="constant")))
    return model


def test_it_is_a_field_of_a_run():
    config = from_dict(TrainConfig, {"steps": 9, "rank_budget": {"final": 3, "every": 2}})
    assert config.rank_budget == RankBudgetConfig(final=3, every=2)
    with pytest.raises(ValueError, match="unknown key 'fnal'; did you mean 'final'"):
        from_dict(TrainConfig, {"rank_budget": {"fnal": 3}})


def test_orthonormal_vectors_have_no_penalty_and_no_nan():
    model, adapter, _ = made()
    with torch.no_grad():
        for value in adapter.factors.values():
            if value.ndim == 2:
                tall = torch.linalg.qr(torch.randn(*sorted(value.shape, reverse=True), dtype=value.dtype)).Q
                value.copy_(tall if value.shape == tall.shape else tall.T)
    penalty = RankBudget(model, RULE, STEPS).penalty()
    penalty.backward()
    assert penalty < 1e-12 and all(value.grad.isfinite().all() for value in adapter.learned.values() if value.ndim == 2)


def test_one_kind_of_controller_at_a_time():
    model, adapter, step_loss = made()
    schedule = RankScheduleConfig(steps=(2,), ranks=(2,))
    with pytest.raises(ValueError, match="give one"):
        fit(model, adapter, step_loss, TrainConfig(steps=STEPS, rank_schedule=schedule, rank_budget=RULE))


# ---- PEFT -----------------------------------------------------------------------------------------------------------
def peft_model():
    """PEFT's AdaLoRA on the same base with the factors of ours."""
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        init_r=RANK, target_r=RULE.final, tinit=RULE.start, tfinal=RULE.hold, deltaT=RULE.every, beta1=RULE.beta1,
        beta2=RULE.beta2, orth_reg_weight=GAMMA, total_step=STEPS, lora_alpha=RANK, target_modules=["one", "two"],
    )  # fmt: skip
    return get_peft_model(base(), config).double().train()


PARTS = {"P": "lora_A", "E": "lora_E", "Q": "lora_B"}


def theirs(values, ours, factor):
    """What they keep of a target's factor, in our layout."""
    [found] = [value.detach() for name, value in values.items() if name.endswith(f"{ours}.{PARTS[factor]}.default")]
    return found.flatten() if factor == "E" else found.T


def test_peft_allocates_alike():
    """Same factors and batches: penalty, scores, masks and budgets agree step by step, until their last choice."""
    model, adapter, step_loss = made(alpha=RANK * RANK / (RANK + 1e-5))  # their scale is alpha / (r + 1e-5)
    other = peft_model()
    named = dict(other.named_parameters())
    with torch.no_grad():
        for key, value in adapter.factors.items():
            target, factor = key.split(".")
            value.normal_(0, 0.4)
            theirs(named, target, factor).copy_(value)
    learned = [value for name, value in named.items() if "lora_" in name]  # of theirs, ranknum is trainable too
    optimizers = [torch.optim.AdamW(parameters, lr=3e-2) for parameters in (adapter.parameters(), learned)]
    rule, allocator = RankBudget(model, RULE, STEPS), other.base_model.rankallocator
    masked = 0
    for step in range(1, STEPS - RULE.hold + 1):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, wanted = step_loss(step) + rule.penalty(), other.base_model(*batch(step % 3)).loss
        torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
        for one, optimizer in zip((loss, wanted), optimizers, strict=True):
            one.backward()
            optimizer.step()
        assert rule.after(step) == allocator.budget_schedule(step)[0]
        other.base_model.update_and_allocate(step)
        for key, value in adapter.factors.items():
            target, factor = key.split(".")
            pairs = [(value.detach(), theirs(named, target, factor))]
            if step < STEPS - RULE.hold:  # then they forget their scores
                pairs.append((rule.sensitivity[key], theirs(allocator.exp_avg_ipt, target, factor)))
                pairs.append((rule.uncertainty[key], theirs(allocator.exp_avg_unc, target, factor)))
            for got, want in pairs:
                torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
        masked += sum(value.eq(0).sum() for key, value in adapter.factors.items() if key.endswith("E")) > 0
    assert masked == 4 and sum(rule.ranks.values()) == 2 * RULE.final  # after steps 4, 6, 8 and 9
    pattern = other.peft_config["default"].rank_pattern
    for key, kept in rule.kept.items():
        assert kept.tolist() == pattern[f"{key.removesuffix('.E')}.lora_E.default"]


# ---- in the loop ----------------------------------------------------------------------------------------------------
CONFIG = TrainConfig(steps=60, lr=3e-2, rank_budget=replace(RULE, start=10, hold=20, every=5))


@pytest.mark.parametrize("method", ("adalora", "metalora-cp"))
def test_the_budget_holds_to_the_end_and_the_loss_falls(method):
    model, adapter, step_loss = made(method)
    seen = []
    losses = fit(model, adapter, step_loss, CONFIG, on_step=lambda step, loss: seen.append(count(adapter)))
    assert seen[8] == 2 * RANK and seen[39:] == [2 * RULE.final] * 21
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


def count(adapter):
    """Singular values that are not zero."""
    return sum(int(value.count_nonzero()) for key, value in adapter.factors.items() if value.ndim == 1)


def test_vectors_come_close_to_orthonormal():
    model, adapter, step_loss = made()
    fit(model, adapter, step_loss, replace(CONFIG, steps=200, rank_budget=replace(CONFIG.rank_budget, final=4)))
    for key in ("one.P", "two.P"):
        vectors = adapter.factors[key].detach()
        assert torch.linalg.matrix_norm(vectors.T @ vectors - torch.eye(RANK)) < 0.5


def test_a_run_that_is_cut_off_resumes_to_the_same_bits(tmp_path):
    resumes_to_the_same_bits(made, numbers, CONFIG, 23, tmp_path)


def test_in_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Both(Net):
        def forward(self, x, labels):
            return {"loss": super().forward(x, labels).loss}

    torch.manual_seed(0)
    model = Both().eval()
    adapter = attach(model, AdapterConfig("adalora", RANK, targets=("one", "two")))
    plain = copy.deepcopy(model)
    data = [{"x": x, "labels": y} for k in range(4) for x, y in zip(batch(k)[0].float(), batch(k)[1], strict=True)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=STEPS, per_device_train_batch_size=8, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, learning_rate=3e-2,
    )  # fmt: skip
    strong = replace(RULE, orthogonality=3.0)
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(strong)]).train()
    assert count(adapter) == 2 * RULE.final
    before, after = (RankBudget(one, RULE, STEPS).penalty() for one in (plain, model))
    assert after < 0.9 * before  # the penalty reached the gradients
