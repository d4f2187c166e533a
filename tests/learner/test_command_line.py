"""A stranger's pictures and sentences: from files to predictions in four commands, and in eight lines of Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.support.command import metalora_command
from tests.support.pages import parsed

from metalora.learner import AdaptedTask, MetaLearner

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
SIZE = 32


def draw(colour: str, shape: str, size: str, seed: int) -> Image.Image:
    """Draw a circle or a square on a grey, noisy ground."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(90, 160, (SIZE, SIZE, 1)).repeat(3, 2).astype("uint8")
    picture = Image.fromarray(noise)
    half = 6 if size == "small" else 11
    x, y = rng.integers(half + 1, SIZE - half - 1, 2)
    box = (x - half, y - half, x + half, y + half)
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[colour])
    return picture


def write_pictures(folder: Path, count: int, start: int = 0) -> list[dict[str, str]]:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(start, start + count):
        rng = np.random.default_rng(number)
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(["circle", "square"]))
        size = str(rng.choice(["small", "large"]))
        name = f"{number:04}.png"
        draw(colour, shape, size, number).save(folder / "images" / name)
        rows.append({"file": name, "colour": colour, "shape": shape if number % 5 else "", "size": size})
    return rows


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows = write_pictures(folder, 300)
    write_table(folder / "labels.csv", rows)
    write_table(folder / "some.csv", rows[:100])
    ripe = [{"file": row["file"], "bluish": str(row["colour"] == "blue")} for row in rows[:60]]
    write_table(folder / "blue.csv", ripe)
    return folder


FIT = ["--backbone", "efficientnet-lite0", "--image-size", SIZE, "--steps", 2, "--support", 30, "--query", 20]
FIT += ["--adapter.rank", 2, "--adapter.targets", "blocks.*.conv_pw", "--validate-every", 0, "--report-episodes", 1]


@pytest.fixture(scope="module")
def learner(pictures: Path) -> Path:
    arguments = ["fit", pictures / "learner", "--data", pictures / "labels.csv", "--images", pictures / "images"]
    code, out, error = metalora_command(*arguments, *FIT, "--holdout", 1, "--report", pictures / "fit.html")
    assert code == 0, error
    assert "this learner" in out and "never trained" in out
    assert out.splitlines()[-1] == f"page: {pictures / 'fit.html'}"
    return pictures / "learner"


@pytest.fixture(scope="module")
def task(pictures: Path, learner: Path) -> Path:
    support = ["--support", pictures / "blue.csv", "--images", pictures / "images"]
    code, out, error = metalora_command("adapt", learner, *support, "--out", pictures / "tasks" / "blue", "--json")
    assert code == 0, error
    assert json.loads(out)["examples"] == 60
    return pictures / "tasks" / "blue"


def test_the_report_of_a_training_tells_which_tasks_were_trained(pictures: Path, learner: Path) -> None:
    page = parsed((pictures / "fit.html").read_text())
    described = json.loads((learner / "learner.json").read_text())["report"]
    held_out = {score["task"] for score in described["scores"] if score["held_out"]}
    header, *rows = page.table("Accuracy on each task")
    assert header[:3] == ["task", "its labels", "this learner"]
    assert {row[0] for row in rows if row[1] == "never trained"} == held_out and len(rows) == 3
    assert "Loss over steps" in page.labels


def test_pictures_in_four_commands(pictures: Path, learner: Path, task: Path) -> None:
    write_pictures(pictures / "inbox", 40, start=1000)
    inbox, predictions = pictures / "inbox" / "images", pictures / "predictions.csv"
    code, out, error = metalora_command("predict", task, inbox, "--out", predictions)
    assert code == 0, error
    with predictions.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and set(rows[0]) == {"input", "label", "probability", "novelty"}
    right = 0
    for row in rows:
        number = int(Path(row["input"]).stem)
        truth = str(np.random.default_rng(number).choice(list(COLOURS))) == "blue"
        right += row["label"] == str(truth)
    assert right >= 34

    code, out, error = metalora_command(
        "evaluate",
        learner,
        "--data",
        pictures / "some.csv",
        "--images",
        pictures / "images",
        "--episodes",
        1,
        "--report",
        pictures / "report.html",
        "--json",
    )
    assert code == 0, error
    page = parsed((pictures / "report.html").read_text())
    assert (
        page.count["img"] == 3 * 3 * 9 and dict(page.table("Settings and versions")[1:])["torch"] == torch.__version__
    )
    assert {score["task"] for score in json.loads(out)["scores"]} == {"colour", "shape", "size"}


def test_pictures_in_eight_lines_of_python(pictures: Path) -> None:
    learner = MetaLearner("efficientnet-lite0", image_size=SIZE, adapter=None)
    learner.fit(pictures / "labels.csv", images=pictures / "images", report=False)
    rows = list(csv.DictReader((pictures / "blue.csv").open()))
    files, labels = [pictures / "images" / row["file"] for row in rows], [row["bluish"] for row in rows]
    task = learner.adapt(files[:50], labels[:50])
    predicted = task.predict(files[50:])
    assert (predicted == np.array(labels[50:])).mean() >= 0.8


def test_sentences_in_four_commands(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    subjects = {"animal": ["the dog", "a cat", "my horse"], "machine": ["the engine", "a pump", "our printer"]}
    rows = []
    for number in range(160):
        topic = str(rng.choice(list(subjects)))
        past, question = bool(rng.integers(2)), bool(rng.integers(2))
        verb = str(rng.choice(["stopped", "moved"] if past else ["stops", "moves"]))
        text = f"{rng.choice(subjects[topic])} {verb} near the {rng.choice(['house', 'river', 'road'])} {number}"
        text = f"did you hear that {text}?" if question else f"{text}."
        rows.append({"text": text, "topic": topic, "tense": "past" if past else "present", "question": str(question)})
    write_table(tmp_path / "sentences.csv", rows)
    learner, task = tmp_path / "learner", tmp_path / "task"
    fit = ["fit", learner, "--backbone", "minilm", "--data", tmp_path / "sentences.csv", "--text-column", "text"]
    quick = ["--max-length", 16, "--validate-every", 0, "--holdout", 1, "--report-episodes", 1]
    small = ["--steps", 2, "--support", 24, "--query", 16, "--adapter.rank", 2, "--adapter.targets", "query,value"]
    code, out, error = metalora_command(*fit, *small, *quick)
    assert code == 0, error

    write_table(tmp_path / "support.csv", [{"text": row["text"], "topic": row["topic"]} for row in rows[:60]])
    code, out, error = metalora_command("adapt", learner, "--support", tmp_path / "support.csv", "--out", task)
    assert code == 0, error
    write_table(tmp_path / "inbox.csv", [{"text": row["text"]} for row in rows[60:100]])
    code, out, error = metalora_command("predict", task, tmp_path / "inbox.csv", "--text-column", "text", "--json")
    assert code == 0, error
    predicted = [row["label"] for row in json.loads(out)]
    assert sum(a == row["topic"] for a, row in zip(predicted, rows[60:100], strict=True)) >= 38

    finetune = ["finetune", "minilm", "--data", tmp_path / "support.csv", "--text-column", "text"]
    method = ["--label-column", "topic", "--method", "metatt-4d", "--rank", 4, "--targets", "query,value"]
    steps = ["--steps", 2, "--max-length", 16, "--out", tmp_path / "run", "--json"]
    code, out, error = metalora_command(*finetune, *method, *steps)
    assert code == 0, error
    assert json.loads(out)["accuracy"] > 0.9
    inbox = ["predict", tmp_path / "run", tmp_path / "inbox.csv", "--text-column", "text", "--json"]
    code, out, error = metalora_command(*inbox)
    assert code == 0, error
    assert set(json.loads(out)[0]) == {"input", "label", "probability", "novelty"}
    assert [row["label"] for row in json.loads(out)] == [row["topic"] for row in rows[60:100]]
    code, out, error = metalora_command("inspect", tmp_path / "run")
    assert "fine-tuned model: the backbone minilm, method metatt-4d" in out
    assert "one of animal, machine for texts" in out


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_finetune_gives_a_start_of_lora_its_data(init: str, tmp_path: Path) -> None:
    subjects = {"animal": "the dog", "machine": "an engine"}
    rows = [{"text": f"{subject} {n}", "topic": topic} for topic, subject in subjects.items() for n in range(10)]
    write_table(tmp_path / "sentences.csv", rows)
    data = ["--data", tmp_path / "sentences.csv", "--text-column", "text", "--max-length", 8, "--steps", 2]
    method = ["--init", init, "--rank", 2, "--targets", "layer.0.*.query,layer.0.*.value", "--out", tmp_path / "run"]
    code, out, error = metalora_command("finetune", "minilm", *data, *method, "--json")
    assert code == 0, error
    assert json.loads(out)["method"] == "lora"
    code, out, error = metalora_command("predict", tmp_path / "run", tmp_path / "sentences.csv", "--json")
    assert code == 0, error
    assert [row["label"] for row in json.loads(out)] == [row["topic"] for row in rows]


def test_a_task_file_is_an_ordinary_task(pictures: Path, learner: Path) -> None:
    rows = list(csv.DictReader((pictures / "blue.csv").open()))
    files, labels = [pictures / "images" / row["file"] for row in rows], [row["bluish"] for row in rows]
    loaded = MetaLearner.from_pretrained(learner)
    loaded.adapt(files, labels).save_pretrained(pictures / "tasks" / "again")
    task = AdaptedTask.from_pretrained(pictures / "tasks" / "again")  # finds its learner by itself
    assert task.learner.fingerprint == loaded.fingerprint


# ---- inspect -------------------------------------------------------------------------------------------------------
def test_inspect_says_in_words_what_is_there(pictures: Path, learner: Path, task: Path) -> None:
    said = {path: metalora_command("inspect", path)[1] for path in (learner, task)}
    assert "is a learner: the backbone efficientnet-lite0 with the adapter lora of rank 2" in said[learner]
    assert "pictures of 32 x 32 pixels" in said[learner] and "this learner" in said[learner]
    assert "is a task: it predicts one of False, True" in said[task]
    code, out, _ = metalora_command("inspect", pictures / "images", "--json")
    (pool,) = json.loads(out)["pools"]
    assert pool["inputs"] == 300 and pool["modality"] == "images" and pool["labels"] == {}
    code, out, error = metalora_command("inspect", pictures / "labels.csv", "--images", pictures / "images")
    assert code == 0, error
    assert "300 pictures" in out and "labels 'colour': 3 classes (blue" in out
    assert "labels 'shape': 2 classes" in out and "60 without a label" in out


# ---- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file": "0000.png"}] * 4, "has no labels"),
        (
            [{"file": f"{n:04}.png", "a": str(n % 2), "b": str(n % 3)} for n in range(12)],
            "several columns of labels (a, b)",
        ),
        ([{"file": f"{n:04}.png", "ripe": "yes"} for n in range(12)], "ripe"),
        ([{"file": f"{n:04}.png", "ripe": str(n % 2)} for n in range(300, 312)], "0300.png"),
    ],
    ids=["no labels", "two columns", "one class", "missing files"],
)
def test_support_sets_that_make_no_task(
    rows: list[dict[str, str]], message: str, pictures: Path, learner: Path, tmp_path: Path
) -> None:
    write_table(tmp_path / "support.csv", rows)
    arguments = ["--support", tmp_path / "support.csv", "--images", pictures / "images", "--out", tmp_path / "task"]
    code, out, error = metalora_command("adapt", learner, *arguments)
    assert code == 2 and message in error, error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "task").exists()


def test_a_picture_that_cannot_be_read(task: Path, learner: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "empty.png").write_bytes(b"")
    out_file = tmp_path / "predictions.csv"
    code, _, error = metalora_command("predict", task, tmp_path / "inbox", "--out", out_file)
    assert code == 2 and "empty.png" in error
    assert not out_file.exists()


def test_folders_that_hold_no_learner(tmp_path: Path) -> None:
    code, _, error = metalora_command("adapt", tmp_path, "--support", "x.csv", "--out", tmp_path / "task")
    assert code == 2 and len(error.strip().splitlines()) == 1
    code, _, error = metalora_command("predict", tmp_path, tmp_path)
    assert code == 2 and "task" in error


def one_line(arguments: list[object], message: str) -> None:
    """Fail unless a command ends with code 2 and one line that has the message."""
    code, out, error = metalora_command(*arguments)
    assert code == 2 and out == "" and message in error, error
    assert len(error.strip().splitlines()) == 1


def test_inputs_of_another_kind(learner: Path, task: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "texts.csv", [{"text": f"text {number}", "a": str(number % 2)} for number in range(30)])
    said = "is a text, but efficientnet-lite0 takes pictures"
    one_line(["predict", task, tmp_path / "texts.csv", "--text-column", "text"], said)
    one_line(["adapt", learner, "--support", tmp_path / "texts.csv", "--out", tmp_path / "task"], said)
    one_line(["fit", tmp_path / "learner", "--data", tmp_path / "texts.csv", *FIT], said)
    finetune = ["finetune", "efficientnet-lite0", "--data", tmp_path / "texts.csv", "--out", tmp_path / "run"]
    one_line([*finetune, "--method", "head"], said)
    one_line(["evaluate", learner, "--data", tmp_path / "texts.csv"], said)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.csv"]


def test_a_task_of_another_learner(pictures: Path, task: Path, tmp_path: Path) -> None:
    MetaLearner("efficientnet-lite0", image_size=SIZE, adapter=None).save_pretrained(tmp_path / "other")
    one_line(["predict", task, pictures / "images", "--learner", tmp_path / "other"], "another learner")


def test_pictures_that_cannot_be_trained_on(pictures: Path, tmp_path: Path) -> None:
    rows = [{"file": f"{number:04}.png", "a": str(number % 2)} for number in range(24)]
    write_table(tmp_path / "rows.csv", [*rows, {"file": "cut.png", "a": "1"}])
    (tmp_path / "cut.png").write_bytes((pictures / "images" / "0000.png").read_bytes()[:200])
    data = ["--data", tmp_path / "rows.csv", "--images", pictures / "images"]
    one_line(["finetune", "efficientnet-lite0", *data, "--method", "head", "--out", tmp_path / "run"], "cut.png")
    one_line(["fit", tmp_path / "learner", *data, *FIT], "cut.png")
    one_line(["fit", tmp_path / "learner", *data, *FIT, "--no-adapter"], "cut.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.png", "rows.csv"]


def test_folders_of_somebody_else_are_refused_before_the_work(pictures: Path, learner: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    data = ["--data", pictures / "blue.csv"]
    for out in (tmp_path / "file", pictures / "images"):
        one_line(["fit", out, *data, *FIT], "exists already")
        one_line(["adapt", learner, "--support", pictures / "blue.csv", "--out", out], "exists already")
        one_line(["finetune", "efficientnet-lite0", *data, "--method", "head", "--out", out], "exists already")
    for verb in (["evaluate", learner], ["fit", tmp_path / "new", *FIT]):
        one_line([*verb, *data, "--report", tmp_path / "none" / "report.html"], "there is no folder")
        one_line([*verb, *data, "--report", tmp_path / "file"], "is not a report of metalora")


@pytest.mark.parametrize("name", ["learner.json", "finetuned.json"])
def test_descriptions_that_are_not_complete(name: str, pictures: Path, tmp_path: Path) -> None:
    kind = {"learner.json": "metalora-learner", "finetuned.json": "metalora-finetuned"}[name]
    for content, message in (("{", "not JSON"), (json.dumps({"format": kind, "version": 1}), "it has no")):
        (tmp_path / name).write_text(content)
        one_line(["inspect", tmp_path], message)
