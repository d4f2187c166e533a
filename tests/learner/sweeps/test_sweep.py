"""A search chooses by the validation alone, is tested on what no trial has seen, and survives what goes wrong."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metalora import AdapterConfig
from metalora.config import from_dict, read_yaml
from metalora.learner import FineTuneConfig, FineTuned, LearnerConfig, MetaLearner, finetune, read_tasks, sweep_fit
from metalora.learner.backbone import load_backbone
from metalora.learner.report import make_report
from metalora.learner.sweeps import jobs
from metalora.learner.sweeps.result import SweepResult
from metalora.learner.sweeps.space import Choice
from metalora.learner.sweeps.trials import TrialRow
from support.pages import parsed
from support.small_searches import ADAPTER, SEARCH, STEPS, inputs_and_labels, small_job, small_network, small_search


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(folder, result) of a search."""
    folder = tmp_path_factory.mktemp("search") / "search"
    return folder, small_search(folder)


def rows_of_the_test():
    job = small_job()
    return job, [job.inputs[row] for row in job.tested], [job.labels[row] for row in job.tested]


def test_the_first_trial_is_the_fine_tuning_without_a_search(searched):
    _, result = searched
    job = small_job()
    rows = job.searched
    alone = finetune(
        small_network(), [job.inputs[row] for row in rows], [job.labels[row] for row in rows], ADAPTER, STEPS
    )
    assert result.first.accuracy == alone.scores_.accuracy
    assert result.first.choice == Choice("lora", 4, "0,2", 2e-3)
    assert result.first.parameters == alone.num_params() == alone.adapter.num_params() + 12 * 2 + 2


def test_no_trial_sees_the_inputs_of_the_test(searched, monkeypatch, tmp_path):
    job, inputs, _ = rows_of_the_test()
    seen = []
    monkeypatch.setattr(jobs, "finetune", lambda backbone, items, *rest, **named: seen.extend(items))
    with pytest.raises(AttributeError):
        job.train(Choice("lora", 4, "0,2", 2e-3), lambda step, accuracy: None)
    assert len(seen) + len(inputs) == 80
    assert not {item.tobytes() for item in seen} & {item.tobytes() for item in inputs}


def test_the_best_trial_is_that_of_the_best_validation(searched):
    _, result = searched
    complete = [row for row in result.trials if row.state == "complete"]
    assert len(result.trials) == 5 and result.best.accuracy == max(row.accuracy for row in complete)


def test_the_saved_model_has_the_scores_of_the_test(searched):
    folder, result = searched
    _, inputs, labels = rows_of_the_test()
    tuned = FineTuned.from_pretrained(folder / "best", backbone=small_network())
    assert tuple(map(float, tuned.predict(inputs) == np.array(labels))) == result.best_scores
    assert tuned.scores_.accuracy == result.best.accuracy
    first = FineTuned.from_pretrained(folder / "kept" / "0", backbone=small_network())
    assert tuple(map(float, first.predict(inputs) == np.array(labels))) == result.first_scores


def test_the_settings_are_those_of_the_best_trial(searched):
    folder, result = searched
    values = read_yaml(folder / "best.yaml")
    adapter = from_dict(AdapterConfig, values.pop("adapter"))
    config, choice = from_dict(FineTuneConfig, values), result.best.choice
    assert config == replace(STEPS, lr=choice.lr)
    if choice.rank is not None:
        assert (adapter.method, adapter.rank, adapter.targets) == (choice.method, choice.rank, choice.targets)


def test_the_files_say_what_the_result_says(searched):
    folder, result = searched
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [(int(row["trial"]), row["state"]) for row in rows] == [(row.number, row.state) for row in result.trials]
    assert json.loads((folder / "result.json").read_text())["verdict"] == result.verdict
    page = parsed((folder / "report.html").read_text())
    table = page.table("All trials")[1:]
    assert [row[6] for row in table] == [f"{row.accuracy:.4f}" for row in result.trials]
    assert len(page.table("Accuracy in the test")) == 3
    names = {"Accuracy of each trial", "Validations of each trial", "Accuracy by rank", "Accuracy by learning rate"}
    assert names <= set(page.labels) and not [source for source in page.sources if source.startswith("http")]


def test_a_search_that_was_stopped_goes_on_to_the_same_result(searched, tmp_path):
    _, whole = searched
    folder, done = tmp_path / "search", []

    def stop_after_two(row, count):
        done.append(row)
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_search(folder, on_trial=stop_after_two)
    assert len(parsed((folder / "report.html").read_text()).table("All trials")) == 3 and (folder / "best").is_dir()
    resumed = small_search(folder, on_trial=stop_after_two)
    assert [row.choice for row in resumed.trials] == [row.choice for row in whole.trials]
    assert resumed.best_scores == whole.best_scores and len(done) == 5


def test_ctrl_c_in_a_trial_leaves_the_others_and_the_trial_is_done_again(tmp_path, monkeypatch):
    train = jobs.FineTuneJob.train

    def stopped(job, choice, on_validation):
        if choice != Choice("lora", 4, "0,2", 2e-3):
            raise KeyboardInterrupt
        return train(job, choice, on_validation)

    monkeypatch.setattr(jobs.FineTuneJob, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        small_search(tmp_path / "search")
    assert len(list(csv.DictReader((tmp_path / "search" / "trials.csv").open()))) == 1
    monkeypatch.setattr(jobs.FineTuneJob, "train", train)
    result = small_search(tmp_path / "search", replace(SEARCH, trials=2))
    assert [row.number for row in result.trials] == [0, 2] and result.trials[1].state != "failed"


def test_a_trial_that_fails_is_a_row_and_the_search_goes_on(tmp_path, monkeypatch):
    train = jobs.FineTuneJob.train

    def too_large(job, choice, on_validation):
        if choice.rank == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(job, choice, on_validation)

    monkeypatch.setattr(jobs.FineTuneJob, "train", too_large)
    result = small_search(tmp_path / "search")
    assert result.first.state == "failed" and result.first.reason == "OutOfMemoryError: CUDA out of memory."
    assert result.best is not None and result.verdict.startswith("The settings without a search failed; the best trial")


def test_a_search_of_which_every_trial_diverges_says_why(tmp_path):
    result = small_search(tmp_path / "search", replace(SEARCH, trials=2, methods=("lora",)), replace(STEPS, lr=1e38))
    assert [row.state for row in result.trials] == ["failed", "failed"] and result.best is None
    assert result.verdict.startswith("All 2 trials failed; the first one: ") and "step" in result.verdict
    assert (tmp_path / "search" / "report.html").is_file() and not (tmp_path / "search" / "best").exists()


def test_a_folder_is_of_one_search(searched, tmp_path):
    folder, _ = searched
    with pytest.raises(ValueError, match="the search of this folder has other values of settings"):
        small_search(folder, config=replace(STEPS, steps=7))
    with pytest.raises(ValueError, match="other values of space, seed;"):
        small_search(folder, replace(SEARCH, ranks=(1, 2, 3), seed=2))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not the folder of a sweep; name another one"):
        small_search(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_launcher_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="take --workers instead of a launcher"):
        small_search(tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_no_trial_starts_after_the_minutes(tmp_path):
    result = small_search(tmp_path / "search", replace(SEARCH, minutes=1e-9))
    assert result.trials == () and result.verdict == "No trial was completed."


def test_a_class_that_cannot_be_split_twice_is_one_error():
    x, _ = inputs_and_labels()
    with pytest.raises(ValueError, match="class 'c' has 2 examples; a sweep needs 3"):
        jobs._class_codes(["a"] * 40 + ["b"] * 38 + ["c"] * 2, len(x))


def test_a_learner_is_searched_by_its_validation_and_tested_by_its_report(tmp_path):
    x = np.random.default_rng(0).normal(size=(160, 6)).astype("float32")
    pools = read_tasks({"x": list(x), "first": (x[:, 0] > 0).tolist(), "second": (x[:, 1] > 0).tolist()})
    config = LearnerConfig(
        adapter=replace(ADAPTER, targets="0"), steps=2, validate_every=1, support=20, query=10, label_sets=2
    )
    search = replace(SEARCH, trials=3, methods=("lora",))
    result = sweep_fit(tmp_path / "search", small_network(), pools, search, config=config)
    best = MetaLearner.from_pretrained(tmp_path / "search" / "best", backbone=small_network())
    split = jobs.FitJob(best.backbone, pools, config, None, 0.2, None).split
    again = make_report(best, split)
    assert best.report_.to_dict() == again.to_dict()
    ours = [score.accuracies for score in again.scores if score.method == "this learner"]
    assert sum(ours, ()) == result.best_scores and result.unit == "episodes"
    assert [len(row.curve) for row in result.trials if row.state == "complete"][0] == 2
    settings = from_dict(LearnerConfig, read_yaml(tmp_path / "search" / "best.yaml"))
    assert settings == best.config


def test_a_learner_needs_validations():
    with pytest.raises(ValueError, match="validate_every is 0 and steps 5, so that no validation happens"):
        jobs.FitJob(None, [], LearnerConfig(steps=5, validate_every=0), None, 0.2, None)
    with pytest.raises(ValueError, match="the settings have no adapter"):
        jobs.FitJob(None, [], LearnerConfig(adapter=None), None, 0.2, None)
    x = list(np.zeros((60, 6), "float32"))
    pools = read_tasks({"x": x, "first": [number % 2 == 0 for number in range(60)]})
    with pytest.raises(
        ValueError,
        match="validated: the 10 labelled inputs that are kept, of 2 classes in a task at most, are too few for an",
    ):
        jobs.FitJob(load_backbone(small_network()), pools, LearnerConfig(), None, 0.2, None)


def test_a_trial_is_pruned_before_its_last_validation_or_not_at_all(tmp_path, monkeypatch):
    train, begun = jobs.FineTuneJob.train, []

    def worse_each_time(job, choice, on_validation):
        begun.append(choice)
        return train(job, choice, lambda step, accuracy: on_validation(step, 1 / len(begun)))

    monkeypatch.setattr(jobs.FineTuneJob, "train", worse_each_time)
    search, config = replace(SEARCH, methods=("lora",)), replace(STEPS, steps=4, validate_every=1)
    states = [(row.state, row.steps) for row in small_search(tmp_path / "early", search, config).trials]
    assert states == [("complete", 4)] * 3 + [("pruned", 1)] * 2
    config = replace(config, validate_every=4)  # the only validation is the last one
    states = [(row.state, row.steps) for row in small_search(tmp_path / "last", search, config).trials]
    assert states == [("complete", 4)] * 5


def row(number, is_first):
    return TrialRow(number, "complete", Choice("lora", 4, "0", 0.1), 0.5, 1, 1, 1.0, "", ((1, 0.5),), is_first)


@pytest.mark.parametrize(
    ("best", "first", "sentence"),
    [
        (
            [1] * 30 + [0] * 10,
            [0] * 30 + [1] * 0 + [0] * 10,
            "The search was worth it: 75.0 ± 13.6 % against 0.0 ± 0.0 %",
        ),
        ([1, 0] * 20, [0, 1] * 20, "The search was not worth it: the two cannot be told apart, 50.0"),
        ([0] * 40, [1] * 40, "The search did harm: 0.0 ± 0.0 % against 100.0 ± 0.0 % without it on 40 test inputs"),
    ],
)
def test_the_verdict_follows_the_paired_interval(best, first, sentence):
    rows = row(0, True), row(1, False)
    result = SweepResult("finetune", rows, rows[1], tuple(map(float, best)), tuple(map(float, first)), "inputs", {})
    assert result.verdict.startswith(sentence)
    differences = np.subtract(best, first)
    margin = 1.96 * differences.std(ddof=1) / 40**0.5
    assert result.verdict.rstrip(".").endswith(f"{100 * differences.mean():+.1f} ± {100 * margin:.1f} points") or (
        "Use the settings without a search" in result.verdict
    )
