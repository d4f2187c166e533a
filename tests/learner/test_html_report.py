"""The page of a report says what the report says, of the same episodes, and shows the user's data as text."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from metalora import AdapterConfig
from metalora.learner import ImagePreprocessor, MetaLearner, read_tasks
from metalora.learner.evaluation import EpisodeFeatures, draw_test_episodes
from metalora.learner.features import StageFeatures
from metalora.learner.html_report import write_html
from metalora.learner.readouts import Targets, make_readout
from metalora.learner.readouts.calibration import error_of_confidence
from metalora.learner.report import LEARNER, REPORT_SEED, evaluate_pools, whole_split
from metalora.learner.report_details import collect
from support.pages import parsed

EVIL = "<script>alert('1')</script>"


def arrays() -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(120, 8)).astype("float32")
    names = np.array([EVIL, 'b"&', "c"])[np.digitize(x[:, 1], [-0.5, 0.5])]
    return {"x": list(x), "a<b": (x[:, 0] > 0).tolist(), "three": names.tolist()}


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))


@pytest.fixture(scope="module")
def learner() -> MetaLearner:
    torch.manual_seed(0)
    return MetaLearner(small_network(), adapter=None, support=24, query=16)


@pytest.fixture(scope="module")
def written(learner: MetaLearner, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an evaluation."""
    pools, path = read_tasks(arrays()), tmp_path_factory.mktemp("page") / "report.html"
    report = evaluate_pools(learner, pools, episodes=3)
    write_html(learner, whole_split(pools), report, path, title=f"a & {EVIL}", episodes=3, facts={"commit": "abc"})
    return path.read_text()


def test_the_page_says_what_the_report_says(learner: MetaLearner, written: str) -> None:
    report = evaluate_pools(learner, read_tasks(arrays()), episodes=3)
    page = parsed(written)
    assert html.escape(report.verdict) in written and f"{report.calibration_error:.3f}" in written
    methods = {row[0]: row for row in page.table("Accuracy of the methods")[1:]}
    assert {name: row[1].split(" ±")[0] for name, row in methods.items()} == {
        name: f"{100 * mean:.1f}" for name, mean in report.means().items()
    }
    header, *tasks = page.table("Accuracy on each task")
    for row in tasks:
        cells = dict(zip(header, row, strict=True))
        for score in report.scores:
            if score.task == row[0]:
                assert cells[score.method] == f"{100 * score.mean:.1f} ± {100 * score.error:.1f}"
    assert page.table("Settings and versions")[-1] == ["commit", "abc"]


def test_the_gain_is_that_over_the_best_peer_paired_by_episode(learner: MetaLearner, written: str) -> None:
    report = evaluate_pools(learner, read_tasks(arrays()), episodes=3)
    header, *tasks = parsed(written).table("Accuracy on each task")
    scores = {(score.task, score.method): np.array(score.accuracies) for score in report.scores}
    for row in tasks:
        gains = 100 * (scores[row[0], LEARNER] - scores[row[0], str(report.best_peer())])
        margin = 1.96 * gains.std(ddof=1) / 3**0.5
        assert row[header.index(f"gain over {report.best_peer()}")] == f"{gains.mean():+.1f} ± {margin:.1f}"


def test_what_the_user_gives_is_shown_as_text(written: str) -> None:
    page = parsed(written)
    assert page.count["script"] == 1 and "alert('1')" not in written
    assert html.escape(EVIL) in written and "a&lt;b" in written
    assert [row[0] for row in page.table("Confusion matrix of three")[1:]] == [EVIL, 'b"&', "c"]
    assert page.title == f"a & {EVIL}"


def test_a_page_needs_nothing_but_itself(written: str) -> None:
    page = parsed(written)
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.search(r"https?:|style=|onclick", written)
    assert "default-src 'none'" in written and "unsafe" not in written


def test_confusions_are_those_of_scikit_learn(learner: MetaLearner) -> None:
    pools = read_tasks(arrays())
    split = whole_split(pools)
    confusion = collect(learner, split, episodes=3).confusions["three"]
    config = learner.config
    drawn = draw_test_episodes(split.kept, split.tasks, 3, config.support, config.query, config.seed + REPORT_SEED)
    true, predicted = [], []
    for episode in (episode for episode in drawn if episode.task == "three"):
        items = [arrays()["x"][row] for row in episode.support.tolist()]
        task = learner.adapt(items, [arrays()["three"][row] for row in episode.support.tolist()])
        predicted += task.predict([arrays()["x"][row] for row in episode.query.tolist()]).tolist()
        true += [arrays()["three"][row] for row in episode.query.tolist()]
    expected = confusion_matrix(true, predicted, labels=confusion.classes)
    np.testing.assert_array_equal(np.array(confusion.counts), expected)


def test_the_calibration_error_by_hand_is_that_of_the_bands(learner: MetaLearner) -> None:
    pools = read_tasks(arrays())
    details = collect(learner, whole_split(pools), episodes=3)
    by_hand, confidence, right = 0.0, details.confidence.numpy(), details.right.numpy()
    for number in range(10):
        inside = np.minimum(np.floor(confidence.astype(np.float64) * 10), 9) == number
        if inside.any():
            by_hand += inside.mean() * abs(right[inside].mean() - confidence[inside].astype(np.float64).mean())
            assert details.bands[number].count == inside.sum()
            assert details.bands[number].right == pytest.approx(right[inside].mean())
    assert by_hand == pytest.approx(error_of_confidence(details.confidence, details.right))
    assert round(by_hand, 6) == evaluate_pools(learner, pools, episodes=3).calibration_error


@pytest.mark.parametrize("name", ["kernel-ridge", "lda", "logistic", "prototype", "knn"])
def test_a_readout_knows_the_temperature_that_it_chose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    support, codes = torch.randn(30, 6), torch.arange(30) % 3
    targets, queries = Targets.classes(codes, 3), torch.randn(8, 6)
    fitted = make_readout(name).eval().fit(support + codes[:, None], targets)
    assert fitted.temperature is not None and fitted.temperature != 1
    modules = ("kernel_fit", "lda", "logistic", "prototype", "knn")

    def one(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return logits.new_ones(logits.shape[:-2])

    for module in modules:
        monkeypatch.setattr(f"metalora.learner.readouts.{module}.best_temperature", one)
    before = make_readout(name).eval().fit(support + codes[:, None], targets)
    if name in ("kernel-ridge", "prototype"):  # the other ones choose a further setting by the calibrated likelihood
        torch.testing.assert_close(fitted.logits(queries) * fitted.temperature, before.logits(queries))


def test_a_readout_of_a_file_does_not_pretend_to_know_its_temperature() -> None:
    fitted = make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3))
    assert fitted.rounded().temperature is None


def test_tasks_of_several_pools_are_told_apart(learner: MetaLearner) -> None:
    columns = arrays()
    pools = read_tasks([(columns["x"], columns["a<b"]), (columns["x"], columns["three"])])
    details = collect(learner, whole_split(pools), episodes=3)
    assert list(details.confusions) == ["task 1", "task 2"]
    assert set(details.confusions["task 2"].classes) == set(columns["three"])


def test_the_page_computes_no_features_again(learner: MetaLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = read_tasks(arrays())
    features = EpisodeFeatures(learner, pools)
    evaluate_pools(learner, pools, episodes=2, features=features)

    def fails(*_: Any) -> None:
        raise AssertionError("the network ran again")

    monkeypatch.setattr(StageFeatures, "_record", fails)
    assert collect(learner, whole_split(pools), episodes=2, features=features).confusions
    with pytest.raises(AssertionError, match="again"):
        collect(learner, whole_split(pools), episodes=2)


def test_pictures_are_inside_of_the_page_and_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 255, (60, 300, 200, 3)).astype("uint8"))
    pools = read_tasks((pictures, [int(number % 2) for number in range(60)]))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    preprocessor = ImagePreprocessor(size=(12, 12), resize=12)
    learner = MetaLearner(network, adapter=None, support=20, query=12, preprocessor=preprocessor)
    write_html(learner, whole_split(pools), evaluate_pools(learner, pools, 1), tmp_path / "a.html", episodes=1)
    page = parsed((tmp_path / "a.html").read_text())
    pictures_shown = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(pictures_shown) == 3 * (1 + 4 + 4)
    assert max(map(len, pictures_shown)) < 15_000  # noise, which JPEG compresses worst


def test_many_classes_are_a_list_of_the_most_frequent_confusions(learner: MetaLearner, tmp_path: Path) -> None:
    pools = read_tasks({"x": arrays()["x"] * 3, "kind": [f"kind {number % 24}" for number in range(360)]})
    many = MetaLearner(small_network(), adapter=None, support=200, query=100)
    path = tmp_path / "many.html"
    write_html(many, whole_split(pools), evaluate_pools(many, pools, 1), path, episodes=1)
    header, *rows = parsed(path.read_text()).table("Confusions of kind")
    counts = [int(row[2]) for row in rows]
    assert header == ["true", "predicted", "predictions"] and 0 < len(rows) <= 15
    assert counts == sorted(counts, reverse=True)


def test_the_training_is_drawn_and_survives_the_folder(tmp_path: Path) -> None:
    pools = read_tasks(arrays())
    torch.manual_seed(0)
    settings: dict[str, Any] = {"support": 24, "query": 16, "steps": 4, "validate_every": 2}
    learner = MetaLearner(small_network(), adapter=AdapterConfig("lora", rank=2), **settings)
    losses: list[float] = []
    learner.fit_pools(pools, on_step=lambda _, loss: losses.append(loss), report=False)
    history = learner.history_
    assert [step for step, _ in history.losses] == [1, 2, 3, 4]
    assert [loss for _, loss in history.losses] == pytest.approx(losses, abs=1e-5)
    assert [step for step, _ in history.accuracies] == [2, 4]
    learner.save_pretrained(tmp_path / "learner")
    torch.manual_seed(0)
    loaded = MetaLearner.from_pretrained(tmp_path / "learner", backbone=small_network())
    assert loaded.history_ == history
    path = tmp_path / "report.html"
    write_html(loaded, whole_split(pools), evaluate_pools(loaded, pools, 1), path, episodes=1)
    page = parsed(path.read_text())
    assert {"Loss over steps", "Accuracy of the validation over steps"} <= set(page.labels)
