"""The estimator: fit on tasks of any form, adapt, predict, and what a user may not do."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn

from metalora.config import AdapterConfig, ConditionConfig
from metalora.io.described_file import checksum, description_in
from metalora.learner import AdaptedTask, MetaLearner, TaskPool, read_tasks
from metalora.learner.data import encode_labels
from metalora.learner.html_report import write_html
from metalora.learner.learner import MetaLearner as Learner
from metalora.learner.report import NO_RECORD, Report, evaluate_pools
from metalora.learner.splits import Split, split_pools

WIDTH = 8


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))


def items(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype("float32")


def table(count: int = 160) -> dict[str, Any]:
    x = items(count)
    names = np.array(["green", "ripe", "rotten"])
    return {
        "x": list(x),
        "first": (x[:, 0] > 0).tolist(),
        "sum": names[np.digitize(x[:, 1] + x[:, 2], [-0.8, 0.8])].tolist(),
        "product": np.where(x[:, 3] * x[:, 4] > 0, "same", "other").tolist(),
        "sometimes": [int(value > 0) if number % 3 else None for number, value in enumerate(x[:, 5])],
    }


def small(**settings: Any) -> Learner:
    defaults: dict[str, Any] = {"steps": 12, "validate_every": 6, "support": 24, "query": 16}
    adapter = AdapterConfig("lora", rank=2, targets=("0", "2"))
    return MetaLearner(network(), **(defaults | {"adapter": adapter} | settings))


@pytest.fixture(scope="module")
def learner() -> Learner:
    return small().fit(table(), holdout=("product",))


@pytest.fixture(scope="module")
def task(learner: Learner) -> AdaptedTask:
    x = items(60, seed=3)
    return learner.adapt(x, np.where(x[:, 0] > 0, "ripe", "green"))


# ---- fit -----------------------------------------------------------------------------------------------------------
def test_fit_trains_the_adapter_and_the_readout(learner: Learner) -> None:
    fresh = small()
    assert learner.adapter is not None and fresh.adapter is not None
    changed = [
        not torch.equal(learner.adapter.factors[key], fresh.adapter.factors[key]) for key in fresh.adapter.factors
    ]
    assert all(changed)
    assert not torch.equal(learner.readout.log_ridge, fresh.readout.log_ridge)
    base = [name for name, _ in network().named_parameters()]
    frozen, before = dict(learner.backbone.model.named_parameters()), dict(network().named_parameters())
    for name in base:
        adapted_name = name if name in frozen else name.replace(".", ".base.", 1)
        assert torch.equal(frozen[adapted_name], before[name])


def test_the_report_compares_with_peers_on_tasks_that_were_held_out(learner: Learner) -> None:
    report = learner.report_
    assert {score.task for score in report.scores if score.held_out} == {"product"}
    methods = {score.method for score in report.scores}
    assert {
        "this learner",
        "logistic regression, all stages",
        "k-NN, last layer",
        "the readout, frozen network",
    } <= methods
    assert "held out" not in report.verdict and "never trained" in report.verdict
    for score in report.scores:
        assert all(0 <= value <= 1 for value in score.accuracies)


def test_an_evaluation_does_not_claim_to_know_what_was_trained_on(learner: Learner) -> None:
    pools = read_tasks(table())  # those of the training
    report = evaluate_pools(learner, pools, episodes=2)
    assert {score.held_out for score in report.scores} == {None}
    assert report.verdict.startswith("On these tasks this learner") and "never trained" not in report.verdict
    assert report.verdict.endswith(NO_RECORD)
    values = report.to_dict()["means"]
    assert (values["trained"], values["held_out"], values["all"]) == ({}, {}, report.means())
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_what_only_a_training_gives_says_so_before_it() -> None:
    untrained = small(steps=1, validate_every=0)
    with pytest.raises(ValueError, match="this learner has no report_: call fit first, or make_report"):
        print(untrained.report_)
    assert not hasattr(untrained, "report_") and untrained.history_.losses == ()
    x = items(60, seed=3)
    assert untrained.adapt(x, x[:, 0] > 0).predict(x).shape == (60,)  # the frozen network can be adapted
    untrained.fit(table())
    assert untrained.report_.verdict and len(untrained.history_.losses) == 1
    untrained.fit(table(), report=False)
    assert not hasattr(untrained, "report_")  # that of an earlier training is not of this one


def test_no_steps_train_nothing() -> None:
    learner, x = small(steps=0), items(60, seed=3)
    untrained = learner.fingerprint
    learner.fit(table(), report=False)
    assert learner.history_.losses == () and learner.fingerprint == untrained
    assert torch.equal(learner.backbone.model(torch.tensor(x)), network()(torch.tensor(x)))
    assert learner.adapt(x, x[:, 0] > 0).score(x, x[:, 0] > 0) > 0.9


def test_the_same_seed_gives_the_same_learner() -> None:
    first, second = (small(steps=4).fit(table(), report=False) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != small(steps=4, seed=1).fit(table(), report=False).fingerprint


def test_fit_without_labels_makes_its_own_notions() -> None:
    learner = small(steps=6).fit(items(120))
    assert learner.adapter is not None and learner.adapter.factors["0.B"].abs().max() > 0
    x = items(60, seed=4)
    assert learner.adapt(x, x[:, 0] > 0).score(items(60, seed=5), items(60, seed=5)[:, 0] > 0) > 0.7


def test_without_an_adapter_nothing_is_trained() -> None:
    learner = MetaLearner(network(), adapter=None, steps=5).fit(table(), report=False)
    x = items(60, seed=4)
    assert learner.adapter is None
    assert learner.adapt(x, x[:, 0] > 0).score(x, x[:, 0] > 0) > 0.9


def test_an_iterable_of_tasks_is_one_pool_each() -> None:
    tasks = [(items(60, seed), (items(60, seed)[:, seed] > 0)) for seed in range(5)]
    learner = small(steps=4, holdout_items=0.0, validate_every=0).fit(tasks)
    assert learner.adapter is not None and learner.adapter.factors["0.B"].abs().max() > 0
    assert len({score.task for score in learner.report_.scores}) == 1  # one of five is held out, with all of its inputs


FEW_KEPT = "the 8 labelled inputs that are kept, of 3 classes in a task at most, are too few for an episode"


def test_too_few_kept_inputs_are_one_warning_and_said_in_the_report(tmp_path: Any) -> None:
    few = table(40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner = small().fit(few)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"fit validates nothing: {FEW_KEPT}") and "The last step is kept" in message
    assert caught[0].filename == __file__
    report = learner.report_
    assert FEW_KEPT in report.verdict and report.scores == () and report.calibration_error is None
    assert learner.history_.accuracies == () and len(learner.history_.losses) == 12
    again = Learner.from_pretrained(learner.save_pretrained(tmp_path / "learner"), backbone=network())
    assert again.report_ == report and FEW_KEPT in (tmp_path / "learner" / "README.md").read_text()
    write_html(learner, split_pools(read_tasks(few), None, 0.2, 0), report, tmp_path / "page.html", title="few")
    assert FEW_KEPT in (tmp_path / "page.html").read_text()


def test_kept_inputs_without_labels_do_not_count() -> None:
    labelled = TaskPool(items(4), {"ripe": encode_labels([0, 1, None, 1], "ripe")})
    split = Split([], [TaskPool(items(20))], (), [labelled])
    assert split.without_episode().startswith("the 3 labelled inputs that are kept, of 2 classes in a task at most")


@pytest.mark.parametrize(
    "settings, data",
    [({"validate_every": 0}, table(40)), ({"holdout_items": 0.0}, table(40)), ({}, items(40))],
    ids=["no validation wanted", "nothing kept", "no labels"],
)
def test_who_wants_no_validation_is_not_warned(settings: dict[str, Any], data: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = small(**settings).fit(data)
    assert "was not compared" in learner.report_.verdict


@pytest.mark.parametrize("every", [0, 4], ids=["without validation", "with validation"])
def test_an_interrupted_training_continues_to_the_same_bits(every: int, tmp_path: Any) -> None:
    straight = small(validate_every=every).fit(table(), report=False)
    checkpoint = tmp_path / "training.pt"

    def interrupt(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(validate_every=every).fit(table(), report=False, checkpoint=checkpoint, on_step=interrupt)
    resumed = small(validate_every=every).fit(table(), report=False, checkpoint=checkpoint)
    assert resumed.fingerprint == straight.fingerprint


def test_an_interrupted_training_is_not_continued_on_other_labels(tmp_path: Any) -> None:
    checkpoint = tmp_path / "training.pt"

    def interrupt(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small().fit(table(), report=False, checkpoint=checkpoint, on_step=interrupt)
    changed = table()
    changed["product"].reverse()
    with pytest.raises(ValueError, match="training.pt: made on other data"):
        small().fit(changed, report=False, checkpoint=checkpoint)


def test_fit_starts_anew_unless_it_is_asked_to_go_on() -> None:
    learner = small(steps=3, validate_every=0).fit(table(), report=False)
    first = learner.fingerprint
    assert learner.fit(table(), report=False).fingerprint == first
    warm = small(steps=3, validate_every=0, warm_start=True).fit(table(), report=False)
    assert warm.fingerprint == first
    assert warm.fit(table(), report=False).fingerprint != first


def test_a_progress_bar_is_shown_if_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    small(steps=2, validate_every=0).fit(table(), report=False)
    assert capsys.readouterr().err == ""
    seen: list[int] = []
    fit = small(steps=2, validate_every=0).fit
    fit(table(), report=False, progress=True, on_step=lambda step, loss: seen.append(step))
    assert "meta-training" in capsys.readouterr().err and seen == [0, 1]


@pytest.mark.parametrize("steps, every, validated", [(7, 3, (3, 6, 7)), (2, 100, (2,)), (4, 2, (2, 4))])
def test_the_last_step_is_validated_too(steps: int, every: int, validated: tuple[int, ...]) -> None:
    learner = small(steps=steps, validate_every=every).fit(table(), report=False)
    assert tuple(step for step, _ in learner.history_.accuracies) == validated


def test_patience_stops_the_training_and_the_best_state_is_kept() -> None:
    seen: list[int] = []
    learner = small(steps=40, validate_every=2, patience=1, lr=1.0)  # a rate that destroys the adapter
    learner.fit(table(), report=False, on_step=lambda step, loss: seen.append(step))
    assert len(seen) < 40


# ---- adapt and predict ---------------------------------------------------------------------------------------------
def test_a_task_predicts_with_its_own_classes(task: AdaptedTask) -> None:
    x = items(100, seed=9)
    truth = np.where(x[:, 0] > 0, "ripe", "green")
    assert task.classes_.tolist() == ["green", "ripe"]
    assert task.score(x, truth) > 0.65  # the adapter had twelve steps
    assert set(task.predict(x)) <= {"green", "ripe"}
    probabilities = task.predict_proba(x)
    assert probabilities.shape == (100, 2) and np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert (task.classes_[probabilities.argmax(1)] == task.predict(x)).all()
    assert len(task.transform(x)) == 100


def test_groups_calibrate_and_do_not_change_what_is_predicted(learner: Learner) -> None:
    x = np.repeat(items(20, seed=3), 4, axis=0) + 0.01 * items(80, seed=4)  # four variants of twenty things
    things, labels = np.repeat(np.arange(20), 4), np.where(np.repeat(items(20, seed=3), 4, axis=0)[:, 0] > 0, "a", "b")
    plain, grouped = learner.adapt(x, labels), learner.adapt(x, labels, groups=[f"thing {n}" for n in things])
    further = items(100, seed=5)
    assert grouped.predict_proba(further).max(1).mean() < plain.predict_proba(further).max(1).mean()
    assert (grouped.predict(further) == plain.predict(further)).mean() > 0.8
    more = grouped.add(further, np.where(further[:, 0] > 0, "a", "b"), groups=range(100))
    assert more.support is not None and more.support.groups is not None and len(more.support.groups) == 180
    with pytest.raises(ValueError, match="with groups"):
        grouped.add(further, ["a"] * 100)
    with pytest.raises(ValueError, match="80 inputs but 79 groups"):
        learner.adapt(x, labels, groups=things[:79])


@pytest.mark.parametrize("verb", ["predict", "predict_proba", "novelty", "transform"])
def test_rows_of_a_filtered_table_are_taken_in_their_order(task: AdaptedTask, verb: str) -> None:
    pandas = pytest.importorskip("pandas")
    rows = list(items(80, seed=5))  # more than one batch
    halves = pandas.Series(rows, index=np.arange(80) + 0.5)  # neither 0 nor positions are in the index
    for series in (pandas.Series(rows)[20:], halves, pandas.Series(rows).sample(frac=1, random_state=0)):
        got, want = getattr(task, verb)(series), getattr(task, verb)(list(series))
        assert (got == want).all()


def test_strange_inputs_are_novel(task: AdaptedTask) -> None:
    x = items(40, seed=9)
    assert task.novelty(x + 30).min() > 0.95
    assert task.novelty(x).mean() < 0.8


@pytest.mark.parametrize("cast", [str, int, bool, float], ids=["str", "int", "bool", "float"])
def test_labels_keep_their_type(learner: Learner, cast: Callable[[Any], Any]) -> None:
    x = items(40, seed=3)
    labels = [cast(int(value > 0)) for value in x[:, 0]]
    predicted = learner.adapt(x, labels).predict(x[:5]).tolist()
    assert all(type(value) is cast for value in predicted)


def test_numbers_and_sets_of_labels(learner: Learner) -> None:
    x, further = items(80, seed=3), items(80, seed=4)
    regression = learner.adapt(x, 2 * x[:, 0] + 1)
    assert regression.kind == "numbers"
    assert regression.score(further, 2 * further[:, 0] + 1) > 0.8
    assert regression.predict(further).shape == (80,)

    def sets(values: np.ndarray) -> list[set[str]]:
        return [{name for name, value in zip("abc", row, strict=True) if value > 0} for row in values[:, :3]]

    several = learner.adapt(x, sets(x))
    assert several.kind == "multilabel"
    assert several.score(further, sets(further)) > 0.75
    with pytest.raises(ValueError, match="numbers"):
        regression.predict_proba(further)


def test_more_labels_and_refinement_leave_the_learner_as_it_is(learner: Learner, task: AdaptedTask) -> None:
    before = learner.fingerprint
    x = items(30, seed=11)
    labels = np.where(x[:, 0] > 0, "ripe", "green")
    larger = task.add(x, labels)
    assert larger.support is not None and len(larger.support.inputs) == 90
    refined = task.refine(x, labels, steps=3, lr=0.05)
    assert learner.fingerprint == before
    assert not np.allclose(refined.decision_function(x), task.decision_function(x))
    assert refined.factors is not None


# ---- generated adapters --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def generated() -> Learner:
    condition = ConditionConfig(scope="support", hidden=8)
    adapter = AdapterConfig("metalora-cp", rank=2, targets=("0", "2"), condition=condition)
    return small(adapter=adapter, steps=6).fit(table(), report=False)


def test_a_support_set_generates_the_core_of_its_task(generated: Learner) -> None:
    x = items(40, seed=3)
    first = generated.adapt(x, x[:, 0] > 0)
    other = generated.adapt(x, x[:, 3] > 0)
    assert first.condition is not None and other.condition is not None
    assert len(first.condition) == 1
    assert not torch.equal(first.condition.vector(), other.condition.vector())


def test_refining_a_generated_task_changes_its_core_alone(generated: Learner) -> None:
    x = items(40, seed=3)
    task = generated.adapt(x, x[:, 0] > 0)
    refined = task.refine(x, x[:, 0] > 0, steps=3, lr=0.1)
    assert refined.factors is None
    assert refined.condition is not None and task.condition is not None
    assert not torch.equal(refined.condition.vector(), task.condition.vector())


# ---- files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["static", "generated"])
def test_saved_learners_and_tasks_predict_the_same(
    which: str, learner: Learner, generated: Learner, tmp_path: Any
) -> None:
    original = learner if which == "static" else generated
    x = items(40, seed=3)
    task = original.adapt(x, np.where(x[:, 0] > 0, "ripe", "green"))
    original.save_pretrained(tmp_path / "learner")
    task.save_pretrained(tmp_path / "ripe")
    loaded = MetaLearner.from_pretrained(tmp_path / "learner", backbone=network())
    again = AdaptedTask.from_pretrained(tmp_path / "ripe", loaded)
    assert np.array_equal(again.decision_function(x), task.decision_function(x))
    assert again.classes_.tolist() == ["green", "ripe"]
    fresh = loaded.adapt(x, np.where(x[:, 0] > 0, "ripe", "green"))
    assert np.array_equal(fresh.decision_function(x), task.decision_function(x))
    if which == "static":
        assert loaded.report_.verdict == learner.report_.verdict
    assert "metalora" in (tmp_path / "learner" / "README.md").read_text()


def test_a_task_can_be_made_compact(learner: Learner, task: AdaptedTask, tmp_path: Any) -> None:
    whole = task.save_pretrained(tmp_path / "whole") / "task.safetensors"
    small_file = task.save_pretrained(tmp_path / "small", max_bytes=8_000) / "task.safetensors"
    assert small_file.stat().st_size < min(10_000, whole.stat().st_size)  # the header comes on top
    x = items(100, seed=9)
    compact = AdaptedTask.from_pretrained(tmp_path / "small", learner)
    assert (compact.predict(x) == task.predict(x)).mean() > 0.9


def test_a_task_of_another_learner_is_refused(learner: Learner, task: AdaptedTask, tmp_path: Any) -> None:
    task.save_pretrained(tmp_path / "ripe")
    with pytest.raises(ValueError, match="another learner"):
        AdaptedTask.from_pretrained(tmp_path / "ripe", small())


def test_another_backbone_is_refused(learner: Learner, tmp_path: Any) -> None:
    learner.save_pretrained(tmp_path / "learner")
    other = network()
    with torch.no_grad():
        other[0].weight.add_(1)
    with pytest.raises(ValueError, match="base weights"):
        MetaLearner.from_pretrained(tmp_path / "learner", backbone=other)


@pytest.mark.parametrize("adapter", [AdapterConfig("lora", rank=2, targets=("0", "2")), None], ids=["lora", "none"])
@pytest.mark.parametrize("tensor", ["0.bias", "4.bias", "4.weight"])
def test_a_backbone_that_differs_anywhere_is_refused(adapter: AdapterConfig | None, tensor: str, tmp_path: Any) -> None:
    small(adapter=adapter).save_pretrained(tmp_path / "learner")
    other = network()
    other.state_dict()[tensor][-1:] += 1
    with pytest.raises(ValueError, match="not those that the adapter was trained on|is not the one that was saved"):
        MetaLearner.from_pretrained(tmp_path / "learner", backbone=other)
    MetaLearner.from_pretrained(tmp_path / "learner", backbone=network())


def test_damaged_files_are_refused(learner: Learner, task: AdaptedTask, tmp_path: Any) -> None:
    file = task.save_pretrained(tmp_path / "ripe") / "task.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="checksum"):
        AdaptedTask.from_pretrained(tmp_path / "ripe", learner)
    file.write_bytes(bytes(content[:100]))
    with pytest.raises(ValueError, match="truncated or damaged"):
        AdaptedTask.from_pretrained(tmp_path / "ripe", learner)
    with pytest.raises(ValueError, match="no task there"):
        AdaptedTask.from_pretrained(tmp_path / "green", learner)


# name -> (a change of the description and the tensors of a task, what the error says)
MISFITS: dict[str, tuple[Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], str]] = {
    "a later version": (lambda d, t: d.update(version=99), "version 99 of the format, this library reads 1"),
    "no labels": (lambda d, t: d.pop("labels"), "it has no 'labels'"),
    "labels without classes": (lambda d, t: d["labels"].pop("classes"), "it has no 'labels.classes'"),
    "a class more": (lambda d, t: d["labels"]["classes"].append("blue"), "its parts do not fit together"),
    "no setting of the readout": (lambda d, t: d["readout"].pop("width"), "it has no 'readout.width'"),
    "another width": (lambda d, t: d["readout"].update(width=3), "its parts do not fit together"),
    "a truth value that is a text": (lambda d, t: d["labels"].update(flat="yes"), "flat is 'yes', expected true or"),
    "whole numbers": (lambda d, t: t.update({"readout/mean": t["readout/mean"].int()}), "'mean' is in torch.int32"),
    "half precision": (lambda d, t: t.update({"readout/factor": t["readout/factor"].half()}), "'factor' is in torch.f"),
    "an offset for all": (
        lambda d, t: t.update({"readout/rule.offset": t["readout/rule.offset"][:1]}),
        "'rule.offset' is for 1 outputs, expected 2",
    ),
    "NaN in the readout": (lambda d, t: t["readout/mean"].fill_(torch.nan), "'readout/mean' has numbers that are not"),
    "NaN in the condition": (lambda d, t: t["condition/0.c"].fill_(torch.nan), "'condition/0.c' has numbers that are"),
    "no support": (lambda d, t: t.pop("readout/support"), "no tensor 'support'"),
    "a narrower support": (lambda d, t: t.update({"readout/support": t["readout/support"][:, :2]}), "do not fit"),
    "fewer items": (lambda d, t: t.update({"readout/nearest": t["readout/nearest"][:2]}), "'nearest' of 2 items"),
    "no condition": (lambda d, t: [t.pop(name) for name in list(t) if "condition/" in name], "no condition, expected"),
    "a value less": (lambda d, t: t.pop("condition/0.c"), "no value for '0.c'"),
    "a longer value": (lambda d, t: t.update({"condition/0.c": torch.zeros(1, 9)}), "'0.c' has shape (1, 9)"),
    "values for two": (lambda d, t: t.update({"condition/0.c": torch.zeros(2, 2)}), "'0.c' has shape (2, 2)"),
    "a tensor of no part": (lambda d, t: t.update({"x": torch.zeros(2)}), "tensor 'x' is not expected"),
    "one more of the readout": (lambda d, t: t.update({"readout/x": torch.zeros(2)}), "readout has no tensor 'x'"),
    "a factor of no adapter": (lambda d, t: t.update({"factors/x": torch.zeros(2)}), "factor 'x' has shape (2,)"),
    "a factor of another shape": (
        lambda d, t: t.update({"factors/0.c": torch.zeros(1)}),
        "factor '0.c' has shape (1,)",
    ),
}


@pytest.mark.parametrize("change, message", MISFITS.values(), ids=MISFITS)
def test_a_task_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], message: str, generated: Learner, tmp_path: Any
) -> None:
    """The checksum fits: another program wrote the file."""
    x = items(40, seed=3)
    file = generated.adapt(x, x[:, 0] > 0).save_pretrained(tmp_path / "task") / "task.safetensors"
    tensors, description = load_tensors(file.read_bytes()), description_in(file.read_bytes())
    change(description, tensors)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    description["sha256"] = checksum(description, tensors)
    file.write_bytes(dump_tensors(tensors, {"metalora": json.dumps(description)}))
    with pytest.raises(ValueError) as error:
        AdaptedTask.from_pretrained(tmp_path / "task", generated)
    assert str(error.value).startswith(f"{tmp_path}/task") and message in str(error.value)


def rewrite_json(folder: Path, **changes: Any) -> None:
    path = folder / "learner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return json.loads((folder / "learner.json").read_text())["config"] | changes


def put_nan(folder: Path) -> None:
    path = folder / "readout.safetensors"
    tensors = load_tensors(path.read_bytes())
    next(iter(tensors.values())).fill_(torch.nan)
    path.write_bytes(dump_tensors(tensors))


# name -> (what happens to the folder of a learner, what the error says)
DAMAGED_LEARNERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another setting": (lambda f: rewrite_json(f, config=settings_of(f, lr=0.1)), "does not match its checksum"),
    "a wrong setting": (lambda f: rewrite_json(f, config=settings_of(f, lr=-1), sha256=None), "sha256 is None"),
    "stages of numbers": (lambda f: rewrite_json(f, stages=[1]), "an item of stages is 1, expected a text"),
    "no kind of inputs": (lambda f: rewrite_json(f, preprocessor={}), "it has no 'preprocessor.kind'"),
    "a cut readout": (lambda f: os.truncate(f / "readout.safetensors", 40), "readout.safetensors: cannot be read"),
    "NaN in the readout": (put_nan, "has numbers that are not finite"),
    "no readout": (lambda f: (f / "readout.safetensors").unlink(), "readout.safetensors: cannot be read"),
    "a cut adapter": (lambda f: os.truncate(f / "adapter.safetensors", 90), "truncated or damaged"),
    "no adapter": (lambda f: (f / "adapter.safetensors").unlink(), "no such adapter file"),
}


@pytest.mark.parametrize("damage, message", DAMAGED_LEARNERS.values(), ids=DAMAGED_LEARNERS)
def test_a_damaged_learner_is_refused_and_the_backbone_stays_as_it_was(
    damage: Callable[[Path], Any], message: str, learner: Learner, tmp_path: Any
) -> None:
    folder = learner.save_pretrained(tmp_path / "learner")
    damage(folder)
    backbone = network()
    backbone.register_forward_hook(lambda *_: None)
    modules, x = list(backbone.modules()), torch.from_numpy(items(3))
    before = backbone(x)
    with pytest.raises(ValueError) as error:
        MetaLearner.from_pretrained(folder, backbone=backbone)
    assert str(error.value).startswith(str(folder)) and message in str(error.value)
    assert list(backbone.modules()) == modules and torch.equal(backbone(x), before)
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules] == [1, 0, 0, 0, 0, 0]


def test_a_learner_of_an_earlier_version_without_a_checksum_loads(learner: Learner, tmp_path: Any) -> None:
    folder = learner.save_pretrained(tmp_path / "learner")
    description = json.loads((folder / "learner.json").read_text())
    del description["sha256"]
    (folder / "learner.json").write_text(json.dumps(description))
    assert MetaLearner.from_pretrained(folder, backbone=network()).fingerprint == learner.fingerprint


def test_a_task_that_would_not_be_read_is_not_written(task: AdaptedTask, tmp_path: Any) -> None:
    with torch.no_grad():
        broken = copy.deepcopy(task.readout)
        broken.scaling.mean.fill_(torch.nan)
    with pytest.raises(ValueError, match="'readout/mean' has numbers that are not finite"):
        AdaptedTask(task.learner, broken, task.labels).save_pretrained(tmp_path / "task")
    assert not (tmp_path / "task").exists()


def test_saving_never_replaces_a_folder_of_somebody_else(learner: Learner, tmp_path: Any) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="exists already"):
        learner.save_pretrained(tmp_path / "photos")
    assert (tmp_path / "photos" / "one.png").read_bytes() == b"x"
    learner.save_pretrained(tmp_path / "learner")
    learner.save_pretrained(tmp_path / "learner")  # its own folder is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learner", "photos"]


# ---- scikit-learn --------------------------------------------------------------------------------------------------
def test_scikit_learn_takes_the_classifier(learner: Learner) -> None:
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = items(90, seed=3)
    y = np.where(x[:, 0] > 0, "ripe", "green")
    classifier = learner.as_classifier()
    assert clone(classifier).learner is learner
    assert cross_val_score(classifier, x, y, cv=3).mean() > 0.7
    pipeline = make_pipeline(StandardScaler(), classifier)
    assert pipeline.fit(x, y).score(x, y) > 0.8


# ---- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 20, "at least 2 classes"),
        (["a"] * 19 + ["b"], "class 'b' has one example"),
        (list(range(20)), "20 classes for 20 inputs"),
        (["a", "b"] * 9, "20 inputs but 18 labels"),
        (["a", None] * 10, "10 of 20 are missing"),
    ],
)
def test_labels_that_make_no_task(learner: Learner, labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner.adapt(items(20), labels)


def test_inputs_of_another_kind(learner: Learner) -> None:
    with pytest.raises(ValueError, match="not an array of numbers"):
        learner.adapt(["a text"] * 20, ["a", "b"] * 10)
    with pytest.raises(ValueError, match="NaN"):
        learner.adapt(np.full((20, WIDTH), np.nan), ["a", "b"] * 10)


def test_unknown_names_are_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        MetaLearner(network(), step=5)
    with pytest.raises(ValueError, match="did you mean 'kernel-ridge'"):
        MetaLearner(network(), readout="kernel-rige")
    with pytest.raises(ValueError, match="backbone 'tim:resnet18'.*did you mean 'timm'"):
        MetaLearner("tim:resnet18")
    with pytest.raises(ValueError, match="task 'frist'.*did you mean 'first'"):
        small().fit(table(), holdout=("frist",))


def test_a_backbone_that_has_an_adapter_is_refused() -> None:
    model = network()
    small_learner = MetaLearner(model, adapter=AdapterConfig("lora", rank=2, targets=("0",)))
    with pytest.raises(ValueError, match="has an adapter already"):
        MetaLearner(small_learner.backbone.model)
    assert copy.deepcopy(small_learner.config) == small_learner.config
