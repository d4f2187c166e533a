"""Ranks that fall while an adapter trains: in our loop, in transformers' Trainer, after a restart."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.config import RankScheduleConfig, TrainConfig
from metalora.ranks.schedule import RankSchedule, ranks_by_step
from metalora.training.controllers import trainer_callback
from metalora.training.loop import fit
from support.resume import resumes_to_the_same_bits

pytest.importorskip("transformers")
WIDTH, STEPS = 16, 8
SCHEDULE = RankScheduleConfig(steps=(3, 6), ranks=(3, 2))
CONFIG = TrainConfig(steps=STEPS, lr=2e-2, checkpoint_every=100, rank_schedule=SCHEDULE)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def made(method="metatt-4d"):
    """(model, adapter, step -> loss) of a task that can be learned: is the first word below 25."""
    model = bert()
    config = AdapterConfig(method, 4, alpha=2.0, targets="query,value", init="ze-no-no-no" if "tt" in method else {})
    adapter = attach(model, replace(config, condition=ConditionConfig(scope="constant")))

    def step_loss(step):
        words = torch.randint(50, (8, 5), generator=torch.Generator().manual_seed(2 * (step % 2)))
        return F.cross_entropy(model(input_ids=words).logits, (words[:, 0] < 25).long())

    return model, adapter, step_loss


def numbers(adapter):
    return {key: value.detach().clone() for key, value in adapter.factors.items()}


# ---- the schedule ---------------------------------------------------------------------------------------------------
def test_the_schedule_of_the_paper():
    """Llama-2-7b, 40 to 20 in five: 39.2, 36.8, 32.8, 27.2, 20."""
    schedule = RankScheduleConfig(steps=(10, 20, 30, 40, 50), final=20)
    assert ranks_by_step(schedule, 40) == {10: 39, 20: 37, 30: 33, 40: 27, 50: 20}
    assert list(ranks_by_step(replace(schedule, rounding="floor"), 40).values()) == [39, 36, 32, 27, 20]
    assert list(ranks_by_step(replace(schedule, gamma=1.0), 40).values()) == [36, 32, 28, 24, 20]


@pytest.mark.parametrize(
    "schedule, message",
    [
        (RankScheduleConfig(steps=(3, 6), ranks=(2, 3)), r"\[4, 2, 3\] grows or ends"),
        (RankScheduleConfig(steps=(3,), ranks=(5,)), r"\[4, 5\] grows or ends"),
        (RankScheduleConfig(steps=(6, 3), ranks=(3, 2)), "expected ascending numbers"),
        (RankScheduleConfig(ranks=(3, 2)), "expected ascending numbers"),
        (RankScheduleConfig(steps=(3, 6), ranks=(3,)), "1 ranks for 2 steps"),
        (RankScheduleConfig(steps=(3,)), "give either ranks"),
        (RankScheduleConfig(steps=(3,), ranks=(2,), final=2), "give either ranks"),
    ],
)
def test_schedules_that_cannot_be(schedule, message):
    model, adapter, step_loss = made()
    before = numbers(adapter)
    with pytest.raises(ValueError, match=message):
        fit(model, adapter, step_loss, replace(CONFIG, rank_schedule=schedule))
    assert all(torch.equal(value, before[key]) for key, value in adapter.factors.items())


# ---- in the loop ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "method, state",
    [
        *[(method, state) for method in ("metatt-4d", "lora", "metalora-cp") for state in ("reset", "carry")],
        ("metalora-tr", "reset"),
    ],
)
def test_ranks_fall_and_the_loss_too(method, state):
    model, adapter, step_loss = made(method)
    many = replace(CONFIG, steps=60, rank_schedule=replace(SCHEDULE, steps=(20, 30), state=state))
    losses = fit(model, adapter, step_loss, many)
    assert set(adapter.config.rank.values()) == {2}
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert all(2 in value.shape for value in adapter.factors.values())


def test_a_run_that_is_cut_off_after_a_sweep_resumes_to_the_same_bits(tmp_path):
    resumes_to_the_same_bits(made, numbers, CONFIG, 5, tmp_path)


def test_gradients_that_are_accumulated_are_not_touched_between():
    """A sweep after an optimiser step sees no gradient; one that comes later fits the new shapes."""
    model, adapter, step_loss = made()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    ranks = RankSchedule(model, SCHEDULE)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    for step in range(1, 8):
        for part in range(2):
            (step_loss(2 * step + part) / 2).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        report = ranks.after(step, optimizer)
        assert (report is not None) == (step in SCHEDULE.steps)
    assert set(adapter.config.rank.values()) == {2}


def test_in_the_trainer_of_transformers(tmp_path):
    from transformers import Trainer, TrainingArguments

    model, adapter, _ = made()
    words = torch.randint(50, (32, 5))
    data = [{"input_ids": row, "labels": int(row[0] < 25)} for row in words]
    arguments = TrainingArguments(
        tmp_path, max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(SCHEDULE)]).train()
    assert set(adapter.config.rank.values()) == {2} and adapter.num_params() == 2 * 2 * WIDTH + 4 * (2 + 2)
