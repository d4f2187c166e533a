"""Wrong inputs of `metalora-papers`: one line that names the thing and what was expected, exit code 2."""

import json

import pytest

from support.command import check_wrong_input, papers_command

RUNS = {  # a RUN.yaml -> what the line says
    "": "run.yaml: the file is empty; expected a run",
    "# nothing": "run.yaml: the file is empty",
    "- 1": "expected a mapping of keys to values, got [1]",
    "hello": "expected a mapping of keys to values, got 'hello'",
    "{a: [": "run.yaml: not valid YAML",
    "file,colour\n" + "000001.png,red\n" * 12_000: "expected a mapping of keys to values, got 'file,colour 000001.png",
    "trian: {steps: 2}": "unknown key 'trian'; did you mean 'train'?",
    "train: {stpes: 2}": "unknown key 'stpes'; did you mean 'steps'?",
    "suite: nwes": "suite: unknown choice 'nwes'; did you mean 'news'?",
    "suite: [news]": "suite: unknown choice ['news']",
    "train: {steps: many}": "train.steps: expected int, got 'many'",
    "train: {steps: true}": "train.steps: expected int, got True",
    "train: {steps: -2}": "train.steps is -2, expected at least 0",
    "train: {steps: 99999999999999999999999}": "train.steps is 99999999999999999999999, expected",
    "train: {lr: -1}": "train.lr is -1.0, expected more than 0",
    "train: {lr: .nan}": "train.lr is nan, expected more than 0",
    "train: {lr: 1.0e+60}": "train.lr is 1e+60, expected more than 0, of a magnitude of at most",
    "train: {checkpoint_every: 0}": "train.checkpoint_every is 0, expected at least 1",
    "train: {schedule: cosin}": "train.schedule: unknown choice 'cosin'; did you mean 'cosine'?",
    "{suite: news, batch: 0}": "batch is 0, expected at least 1",
    "{suite: news, batch: -4}": "batch is -4, expected at least 1",
    "{suite: news, examples: 0}": "examples is 0, expected at least 1",
    "{suite: news, test_examples: 0}": "test_examples is 0, expected at least 1",
    "{suite: news, max_length: 0}": "max_length is 0, expected at least 1",
    "{suite: news, tasks: []}": "tasks is empty, expected at least 1 item",
    "{suite: news, tasks: [topic, topic]}": "tasks[1] is 'topic', which is there twice",
    "{suite: commonsense, tasks: []}": "tasks is empty, expected at least 1 item",
    "{suite: continuation, decoder: {width: 7}}": "width is 7, expected a multiple of twice its 4 heads",
    "adapter: {rank: {}}": "adapter.rank is empty, expected at least 1 item",
    "adapter: {condition: {scope: supprt}}": "scope: unknown choice 'supprt'; did you mean 'support'?",
    "episodes: {trained: []}": "episodes.trained is empty, expected at least 1 item",
    "split: tset": "split: unknown choice 'tset'; did you mean 'test'?",
    "lr: 1\nlr: 2": "line 2: key 'lr' is there twice",
}
COMMANDS = {  # a command line -> what the line says
    "": "a command is missing: one of table, train",
    "trian run.yaml": "unknown command 'trian'; did you mean 'train'?",
    "train": "missing RUN.yaml",
    "train {}/run.yaml --otu x": "unknown flag --otu; did you mean --out?",
    "train {}/none.yaml": "none.yaml: no such file",
    "train {}": "cannot be read (Is a directory), expected a YAML file",
    "train /proc/nope": "/proc/nope: no such file",
    "train /dev/zero": "/dev/zero: cannot be read (not a regular file), expected a YAML file",
    "train {}/run.yaml --out {}/notes.txt": "notes.txt is a file, expected a folder",
    "train {}/run.yaml --out {}/notes.txt/x": "notes.txt is a file, expected a folder",
    "eval {}": "cannot be read (Is a directory), expected a YAML file",
    "eval {}/none.yaml": "none.yaml: no such file",
    "eval {}/run.yaml --adapter {}/none": "none: no such adapter file",
    "eval {}/run.yaml --adapter {}": "a directory, expected an adapter file",
    "eval {}/run.yaml --adapter {}/notes.txt": "notes.txt: not a complete adapter file",
    "recipe metatt-tabel2": "unknown recipe 'metatt-tabel2'",
    "recipe metatt-2 --seed -1": "--seed is -1, expected at least 0",
    "recipe metatt-2 --seed x": "--seed: expected a whole number, got 'x'",
    "grid {}": "cannot be read (Is a directory), expected a YAML file",
    "grid {}/run.yaml --lr -1": "GridConfig.lr[0] is -1.0, expected more than 0",
    "grid {}/run.yaml --rank 0": "GridConfig.rank[0] is 0, expected at least 1",
    "grid {}/run.yaml --batch 0": "GridConfig.batch[0] is 0, expected at least 1",
    "grid {}/run.yaml --config {}": "cannot be read (Is a directory), expected a YAML file",
    "grid {}/run.yaml --workers 0": "ExecutorConfig.workers is 0, expected at least 1",
    "grid {}/run.yaml": "grid: give values of rank, alpha, lr or batch",
    "table": "a command is missing: one of metalora",
    "table metalroa": "unknown command 'metalroa'; did you mean 'metalora'?",
    "table metalora --stpes 3": "unknown flag --stpes; did you mean --steps?",
    "table metalora --config {}": "cannot be read (Is a directory), expected a YAML file",
    "table metalora --config {}/table.yaml": "unknown key 'stpes'; did you mean 'steps'?",
    "table metalora --steps -1": "TableConfig.steps is -1, expected at least 0",
    "table metatt-2 --seeds": "TextTableConfig.seeds is empty, expected at least 1 item",
    "table metatt-2 --seeds 1 1": "TextTableConfig.seeds[1] is 1, which is there twice",
    "table metatt-2 --tasks": "TextTableConfig.tasks is empty, expected at least 1 item",
    "table metalora --backbone resnte": "--backbone: unknown choice 'resnte'; did you mean 'resnet'?",
    "table metalora --rows {}/none.jsonl --out {}": "none.jsonl: no such file, expected a file of rows",
    "table metalora --rows {} --out {}": "a folder, expected a file of rows",
    "table metalora --rows /dev/null --out {}": "/dev/null: not a file, expected a file of rows",
    "table metalora --rows {}/empty.jsonl --out {}": "empty.jsonl: there is no row in it",
    "table metalora --rows {}/no-row.jsonl --out {}": "row 1 is not a row of results (expected key, suite",
    "table metalora --rows {}/bench.jsonl --out {}": "(it has rows of bench)",
    "table metatt-2 --rows {}/bench.jsonl --out {}": "(it has rows of bench)",
    "table learner-texts --rows {}/bench.jsonl --out {}": "(it has rows of bench)",
    "table metalora-continuation --rows {}/bench.jsonl --out {}": "(it has rows of bench)",
    "table metatt-fig13 --rows {}/bench.jsonl --out {}": "(it has rows of bench)",
    "table metalora --rows {}/short.jsonl --out {}": "a row of this suite has another form (KeyError: 'data')",
    "table metalora --rows {}/bench.jsonl --out {}/notes.txt": "notes.txt is a file, expected a folder",
    "fetch emojii": "unknown data 'emojii'; did you mean 'emoji'?",
    "fetch emoji --vendors gogle": "unknown vendor 'gogle'; did you mean 'google'?",
    "fetch vit --out {}/notes.txt": "notes.txt is a file, expected a folder",
    "demo --data nothing --out {}": "unknown data 'nothing'; did you mean 'emoji'?",
    "demo --image-size 0": "DemoConfig.image_size is 0, expected at least 1",
    "demo --out {}/notes.txt": "notes.txt is a file, expected a folder",
}


def row(suite):
    return json.dumps({"key": "a", "suite": suite, "seed": 0, "config": {"method": "lora"}, "results": {}}) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with files that are no runs, no tables and no rows."""
    folder = tmp_path_factory.mktemp("wrong")
    contents = {"run.yaml": "suite: news", "notes.txt": "notes", "table.yaml": "stpes: 3", "empty.jsonl": ""}
    contents |= {"no-row.jsonl": '{"a": 1}\n', "bench.jsonl": row("bench"), "short.jsonl": row("attributes")}
    for name, content in contents.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("text, fragment", RUNS.items(), ids=lambda value: value[:40])
def test_a_wrong_run_is_one_line(text, fragment, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    check_wrong_input(papers_command, "metalora-papers", ["train", path, "--out", tmp_path / "out"], fragment, tmp_path)


@pytest.mark.parametrize("line, fragment", COMMANDS.items(), ids=[line or "nothing" for line in COMMANDS])
def test_a_wrong_command_is_one_line(line, fragment, folder):
    arguments = line.replace("{}", str(folder)).split()
    check_wrong_input(papers_command, "metalora-papers", arguments, fragment, folder)
