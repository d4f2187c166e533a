"""The page of an evaluation: complete, without a network, with what the report says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metalora.learner import ImagePreprocessor, MetaLearner, read_tasks
from metalora.learner.evaluation import EpisodeFeatures
from metalora.learner.features import StageFeatures
from metalora.learner.html_report import collect, page, write_html
from metalora.learner.readouts.calibration import error_of_confidence
from metalora.learner.report import evaluate_pools

VOID = {"meta", "img", "circle", "path"}


class Balanced(HTMLParser):
    """Checks that tags are closed in their order, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return parser


def arrays() -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(120, 8)).astype("float32")
    return {"x": list(x), "a<b": (x[:, 0] > 0).tolist(), "three": np.digitize(x[:, 1], [-0.5, 0.5]).tolist()}


@pytest.fixture(scope="module")
def learner() -> MetaLearner:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
    return MetaLearner(network, adapter=None, support=24, query=16)


def test_the_page_of_arrays(learner: MetaLearner, tmp_path: Path) -> None:
    pools = read_tasks(arrays())
    report = evaluate_pools(learner, pools, episodes=3)
    write_html(learner, pools, report, tmp_path / "report.html", title="a & b", episodes=3)
    text = (tmp_path / "report.html").read_text()
    parser = parsed(text)
    assert parser.sources == [] and "http" not in text  # nothing is loaded from anywhere
    methods = {score.method for score in report.scores}
    assert all(text.count(method) >= 2 for method in methods)
    assert "a &amp; b" in text and "a&lt;b" in text and "<b</" not in text
    assert report.verdict.replace("%", "%") in text
    assert parser.count["table"] == 2 + 2 + 2  # methods, tasks; confusions and neighbours of two tasks
    mean = report.means()["this learner"]
    assert f"{100 * mean:.1f} ±" in text


def test_tasks_of_several_pools_are_told_apart(learner: MetaLearner) -> None:
    columns = arrays()
    pools = read_tasks([(columns["x"], columns["a<b"]), (columns["x"], columns["three"])])
    report = evaluate_pools(learner, pools, episodes=3)
    assert {(score.task, len(score.accuracies)) for score in report.scores} == {("task 1", 3), ("task 2", 3)}
    details = collect(learner, pools, episodes=3)
    assert list(details.confusions) == ["task 1", "task 2"]
    assert details.confusions["task 2"][0] == ["0", "1", "2"]


def test_the_page_computes_no_features_again(learner: MetaLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = read_tasks(arrays())
    features = EpisodeFeatures(learner, pools)
    evaluate_pools(learner, pools, episodes=2, features=features)

    def fails(*_: Any) -> None:
        raise AssertionError("the network ran again")

    monkeypatch.setattr(StageFeatures, "_record", fails)
    assert collect(learner, pools, episodes=2, features=features).confusions
    with pytest.raises(AssertionError, match="again"):
        collect(learner, pools, episodes=2)


def test_the_details_are_those_of_the_report(learner: MetaLearner) -> None:
    pools = read_tasks(arrays())
    report = evaluate_pools(learner, pools, episodes=3)
    details = collect(learner, pools, episodes=3)
    assert round(error_of_confidence(details.confidence, details.right), 6) == report.calibration_error
    names, counts = details.confusions["three"]
    assert names == ["0", "1", "2"] and counts.sum() == 16
    first = next(s for s in report.scores if s.task == "three" and s.method == "this learner").accuracies[0]
    assert counts.diagonal().sum() / counts.sum() == pytest.approx(first)


def test_pictures_are_inside_of_the_page() -> None:
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 255, (60, 12, 12, 3)).astype("uint8"))
    pools = read_tasks((pictures, [int(picture.mean() > 127) for picture in pictures]))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    preprocessor = ImagePreprocessor(size=(12, 12), resize=12)
    learner = MetaLearner(network, adapter=None, support=20, query=12, preprocessor=preprocessor)
    report = evaluate_pools(learner, pools, episodes=1)
    text = page(report, collect(learner, pools, episodes=1), "pictures")
    parser = parsed(text)
    assert parser.count["img"] == 3 * (1 + 4 + 4)
    assert all(re.match("data:image/png;base64,", source) for source in parser.sources)
