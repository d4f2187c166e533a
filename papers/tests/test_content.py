"""Rows belong to what the files held, not to their names; what a command did not make is not replaced."""

import json

import pytest
from PIL import Image

from metalora.bench.store import run_key
from metalora.config import to_dict
from metalora_papers import jobs
from metalora_papers.config import BackboneConfig, EpisodeConfig, RunConfig, TableConfig, TextRunConfig
from metalora_papers.content import content_of, path_digest
from metalora_papers.jobs import key_of
from metalora_papers.made_files import made_files
from metalora_papers.metalora.vision import load_episodes
from metalora_papers.metatt.glue import Glue
from metalora_papers.scheduler import missing_runs, run_one
from support.command import papers_command


def write_pictures(folder, classes=8, count=5):
    """A folder for each class, with grey pictures."""
    for label in range(classes):
        for number in range(count):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 20 * label + number).save(folder / str(label) / f"{number}.png")


def test_a_label_that_moves_and_a_picture_that_changes_are_another_run(tmp_path):
    write_pictures(tmp_path / "set")
    run = RunConfig(data="folder:set", data_root=str(tmp_path))
    keys = [key_of(run)]
    (tmp_path / "set/0/0.png").rename(tmp_path / "set/1/moved.png")
    keys.append(key_of(run))
    Image.new("L", (28, 28), 255).save(tmp_path / "set/2/1.png")
    keys.append(key_of(run))
    assert len(set(keys)) == 3 and key_of(run) == keys[-1]


def test_the_same_content_elsewhere_has_the_same_digest(tmp_path):
    for name in ("a", "b"):
        write_pictures(tmp_path / name, classes=2)
    assert path_digest(tmp_path / "a") == path_digest(tmp_path / "b")


def test_the_key_of_a_run_without_files_is_that_of_its_configuration():
    assert key_of(RunConfig(data="digits")) == run_key(to_dict(RunConfig(data="digits")))


def test_weights_in_the_name_of_a_model_count(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"1")
    run = RunConfig(model=f"timm:resnet18@{file}")
    before = content_of(run)
    file.write_bytes(b"2")
    assert list(before) == ["model"] and content_of(run) != before


def test_the_pretrained_backbone_is_not_that_of_other_labels(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "set", count=60)
    episodes = EpisodeConfig(trained=("class",), held_out=(), test_episodes=1)
    backbone = BackboneConfig(steps=2, batch=2)
    run = RunConfig(data="folder:set", data_root=str(tmp_path), backbone=backbone, episodes=episodes)
    load_episodes(run)
    load_episodes(run)
    assert len(list((tmp_path / "cache/backbones").iterdir())) == 1
    # the first batch of two pictures may have none of those that change their class
    first, second = tmp_path / "set/0/59.png", tmp_path / "set/1/59.png"
    pictures = first.read_bytes(), second.read_bytes()
    first.write_bytes(pictures[1])
    second.write_bytes(pictures[0])
    load_episodes(run)
    assert len(list((tmp_path / "cache/backbones").iterdir())) == 2


def test_a_table_of_texts_is_read_again_in_the_same_process(tmp_path):
    file = tmp_path / "RTE" / "train.tsv"
    file.parent.mkdir()
    lines = [
        "index\tsentence1\tsentence2\tlabel",
        *(f"{n}\ta{n}\tb{n}\t{label}entailment" for n in range(20) for label in ("", "not_")),
    ]
    file.write_text("\n".join(lines) + "\n")
    before = Glue(tmp_path).examples("rte", "train", 4, 0)
    file.write_text("\n".join(lines).replace("\tb", "\tc") + "\n")
    assert Glue(tmp_path).examples("rte", "train", 4, 0) != before


def test_a_finished_run_is_found_until_its_data_change(tmp_path, monkeypatch):
    write_pictures(tmp_path / "set")
    run, out = RunConfig(data="folder:set", data_root=str(tmp_path)), tmp_path / "out"
    executed = []

    def execute(config, **_):
        from metalora.bench.store import finished_row
        from metalora_papers.execution import Outcome

        executed.append(config)
        return Outcome(finished_row(config, {"mean": 0.5}, 0.0, content_of(config)), None, None)

    monkeypatch.setattr(jobs, "execute", execute)
    assert run_one(run, out) == run_one(run, out) and len(executed) == 1
    (tmp_path / "set/0/0.png").rename(tmp_path / "set/1/moved.png")
    assert missing_runs([run], out) == [run]
    assert run_one(run, out)["key"] == key_of(run) and len(executed) == 2
    # a row of before, which names files and does not say what they held, answers nothing
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    old = [row | {"key": run_key(row["config"])} for row in rows]
    for row in old:
        del row["content"]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    assert missing_runs([run], out) == [run]


def test_train_says_that_it_was_finished_and_where_its_row_is(tmp_path, monkeypatch):
    import yaml

    run = TextRunConfig(test_examples=7)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(to_dict(run)))
    frame = {"suite": run.suite, "config": to_dict(run), "seed": 0, "results": {"mean": 0.5}}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"key": key_of(run), **frame}) + "\n")
    monkeypatch.setattr(jobs, "execute", lambda *_, **__: pytest.fail("it was run again"))
    code, out, err = papers_command("train", tmp_path / "run.yaml", "--out", tmp_path, "--json")
    assert code == 0 and json.loads(out)["results"] == {"mean": 0.5}
    assert err == f"already finished: its row is {key_of(run)} in {tmp_path}/rows.jsonl; it is not run again\n"


# ---- made_files ----------------------------------------------------------------------------------------------------
def make(folder, text, overwrite=False):
    with made_files(folder, overwrite) as temporary:
        (temporary / "table.md").write_text(text)
        (temporary / "plot.png").write_text(text)


def test_what_the_command_made_is_replaced_and_nothing_else(tmp_path):
    make(tmp_path, "1")
    make(tmp_path, "2")
    assert (tmp_path / "table.md").read_text() == (tmp_path / "plot.png").read_text() == "2"
    (tmp_path / "table.md").write_text("2, and notes of the user")
    with pytest.raises(ValueError, match="table.md: exists already.*--overwrite replaces it"):
        make(tmp_path, "3")
    assert (tmp_path / "table.md").read_text() == "2, and notes of the user"
    assert (tmp_path / "plot.png").read_text() == "2"
    make(tmp_path, "4", overwrite=True)
    assert (tmp_path / "table.md").read_text() == "4"


def test_a_table_of_somebody_else_stays(tmp_path, monkeypatch):
    from metalora_papers.metalora import table as image_table

    monkeypatch.setattr(image_table.ImageComparison, "rows_of", lambda self, rows: rows)
    report = type("Report", (), {"tables": [], "to_json": dict})()
    monkeypatch.setattr(image_table.ImageComparison, "report", lambda self, rows: report)
    monkeypatch.setattr(image_table.ImageComparison, "plot", lambda self, rows, folder: [])
    stem = image_table.ImageComparison("metalora", TableConfig()).file_stem
    (tmp_path / f"{stem}.md").write_text("notes")
    row = {"key": "a", "suite": "domains", "config": {}, "results": {}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = papers_command("table", "metalora", "--rows", tmp_path / "rows.jsonl", "--out", tmp_path, "--json")
    assert code == 2 and "exists already" in err and (tmp_path / f"{stem}.md").read_text() == "notes"
    arguments = ("--rows", tmp_path / "rows.jsonl", "--out", tmp_path, "--json", "--overwrite")
    assert papers_command("table", "metalora", *arguments)[0] == 0
    assert (tmp_path / f"{stem}.md").read_text() != "notes"
