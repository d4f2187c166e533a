"""Metrics against textbook formulas, and which evaluation of a run counts."""

import numpy as np
import pytest
import scipy.stats

from metalora_papers.metatt.scores import by_metric, judged, mean_score, measured, metrics_of, reported


def matthews(predicted, answers):
    right, wrong = predicted == answers, predicted != answers
    tp, tn = (right & (answers == 1)).sum(), (right & (answers == 0)).sum()
    fp, fn = (wrong & (answers == 0)).sum(), (wrong & (answers == 1)).sum()
    return (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def f1(predicted, answers):
    hits = ((predicted == 1) & (answers == 1)).sum()
    precision, recall = hits / (predicted == 1).sum(), hits / (answers == 1).sum()
    return 2 * precision * recall / (precision + recall)


def drawn(classes, n=60):
    rng = np.random.default_rng(classes)
    answers = rng.integers(0, classes or 6, n)
    predicted = np.where(rng.random(n) < 0.6, answers, rng.integers(0, classes or 6, n))
    return (predicted, answers) if classes else (predicted + rng.normal(size=n), answers / 1.0)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_metrics_are_those_of_the_textbook(classes):
    predicted, answers = drawn(classes)
    expected = {"accuracy": sum(predicted == answers) / len(answers)}
    if classes == 2:
        expected |= {"f1": f1(predicted, answers), "matthews": matthews(predicted, answers)}
    if classes == 0:
        ranks = scipy.stats.rankdata(predicted), scipy.stats.rankdata(answers)
        expected = {"spearman": np.corrcoef(*ranks)[0, 1], "pearson": np.corrcoef(predicted, answers)[0, 1]}
    assert measured(predicted, answers, classes) == pytest.approx(expected)
    assert all(0 < abs(value) < 1 for value in expected.values())


def test_constant_predictions_have_no_correlation():
    assert measured(np.zeros(4), np.array([0.5, 1, 2, 3]), 0) == {"spearman": 0, "pearson": 0}
    assert measured(np.ones(4, int), np.array([0, 1, 1, 1]), 2) == {
        "accuracy": 0.75, "f1": pytest.approx(6 / 7), "matthews": 0,
    }  # fmt: skip
    assert measured(np.zeros(4, int), np.zeros(4, int), 2) == {"accuracy": 1, "f1": 0, "matthews": 0}


EVALUATION = {
    "accuracy": {"cola": 0.9, "rte": 0.6},
    "matthews": {"cola": 0.3, "rte": 0.1},
    "spearman": {"stsb": 0.4},
    "pearson": {"stsb": 0.5},
}


def test_cola_is_judged_by_matthews_and_sts_b_by_spearman():
    tasks = ("cola", "rte", "stsb")
    scores = {"cola": 0.3, "rte": 0.6, "stsb": 0.4}
    assert judged(EVALUATION, tasks) == scores
    assert mean_score(EVALUATION, tasks) == pytest.approx(1.3 / 3)
    assert by_metric(scores) == {"matthews": {"cola": 0.3}, "accuracy": {"rte": 0.6}, "spearman": {"stsb": 0.4}}
    assert metrics_of("mrpc") == metrics_of("qqp") == ("accuracy", "f1")  # as GLUE; accuracy judges
    assert metrics_of("topic") == metrics_of("mnli") == ("accuracy",)


def point(cola, rte):
    return {"accuracy": {"cola": 1 - cola, "rte": rte}, "matthews": {"cola": cola, "rte": 0.0}}


def row(history, last, loss=0.5):
    results = {**last, "history": history, "loss": loss, "num_params": 7}
    return {"config": {"tasks": ("cola", "rte"), "method": "lora"}, "results": results}


@pytest.mark.parametrize(
    ("history", "last", "best"),
    [
        ([point(0.2, 0.7), point(0.4, 0.6)], point(0.1, 0.8), point(0.4, 0.6)),  # the best mean, not the best tasks
        ([point(0.2, 0.7)], point(0.4, 0.8), point(0.4, 0.8)),  # the last evaluation counts too
    ],
)
def test_the_best_evaluation_has_the_best_mean_of_what_judges_the_tasks(history, last, best):
    found = reported(row(history, last), "best")["results"]
    assert {name: found[name] for name in best} == best and found["num_params"] == 7
    assert reported(row(history, last), "last")["results"]["matthews"] == last["matthews"]


def test_a_run_without_evaluations_on_the_way_has_no_best_one():
    with pytest.raises(ValueError, match="report best: 'lora' has no evaluation before its last step"):
        reported(row([], point(0.1, 0.2)), "best")
    untrained = row([], point(0.1, 0.2), loss=None)
    assert reported(untrained, "best") == untrained
