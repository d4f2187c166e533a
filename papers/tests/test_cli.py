"""The command `metalora-papers`, and `metalora` on the base of a run, in-process."""

import json
import typing
from types import SimpleNamespace

import pytest
import torch

import metalora
from metalora._util.number_range import Range
from metalora_papers.cli import TABLES, VERBS
from metalora_papers.config import TableConfig
from metalora_papers.registry import load_run, open_suite
from support.command import (
    check_command,
    check_usage,
    heavy_imports,
    metalora_command,
    papers_command,
    write_resnet_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore:Only one sample available", "ignore:.*the condition is ignored")
RUN = """
suite: attributes
data: digits
method: metalora-cp
adapter: {method: metalora-cp, rank: 2, clip_rank: true, condition: {scope: support, hidden: 4}}
backbone: {steps: 3, batch: 16}
train: {steps: 2}
episodes: {trained: [class, frame], held_out: [scale], support: 12, query: 8, test_support: 36, test_query: 12,
           test_episodes: 1}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that commands read: a run, bad runs, the adapter of a timm model, and a cache of backbones of this file."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("cli")
    (folder / "run.yaml").write_text(RUN)
    (folder / "original.yaml").write_text(
        RUN.replace("adapter:", "# adapter:").replace("metalora-cp\n#", "original\n#")
    )
    (folder / "unknown-key.yaml").write_text("trian: {steps: 2}\n")
    (folder / "unknown-suite.yaml").write_text("suite: atributes\n")
    (folder / "unknown-method.yaml").write_text(RUN.replace("{method: metalora-cp", "{method: metalora-pc"))
    (folder / "unknown-data.yaml").write_text(RUN.replace("digits", "digit"))
    (folder / "table.yaml").write_text("stpes: 3\n")
    (folder / "broken.safetensors").write_bytes(b"no adapter")
    write_resnet_adapter(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALORA_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def trained(files):
    """The tiny run, trained: its row as printed, its adapter, a condition made through the API."""
    pytest.importorskip("accelerate")
    code, out, err = papers_command("train", files / "run.yaml", "--out", files / "out", "--json")
    assert (code, err) == (0, "")
    row = json.loads(out)
    suite = open_suite(load_run(files / "run.yaml"))
    adapter = metalora.load(suite.model, row["adapter"])
    episode = suite.test_episode("frame", 0)
    with torch.no_grad():
        condition = adapter.condition(episode.support_x, episode.support_y)
        condition.save(files / "condition.safetensors")
        features = suite.model(episode.query_x, condition=condition)
    return SimpleNamespace(row=row, adapter=row["adapter"], query=episode.query_x, features=features)


COMMANDS = {  # arguments ({} is the folder of files), exit code, fragment of stdout (code 0) or of stderr
    "no run file": ("train {}/none.yaml", 2, "none.yaml: no such file"),
    "unknown key": ("train {}/unknown-key.yaml", 2, "unknown-key.yaml: unknown key 'trian'; did you mean 'train'?"),
    "unknown suite": ("eval {}/unknown-suite.yaml", 2, "unknown choice 'atributes'; did you mean 'attributes'?"),
    "unknown method in a run": ("train {}/unknown-method.yaml --out {}/bad --json", 2, "did you mean 'metalora-cp'?"),
    "unknown data": ("eval {}/unknown-data.yaml", 2, "unknown image set 'digit'; did you mean 'digits'?"),
    "unknown key of a table": ("table metalora --config {}/table.yaml", 2, "'stpes'; did you mean 'steps'?"),
    "unknown row of a table": ("table metalora --methods lroa --out {}/t", 2, "'lroa'; did you mean 'lora'?"),
    "eval of a missing adapter": ("eval {}/run.yaml --adapter {}/none.safetensors", 2, "no such adapter file"),
    "help of a verb": ("train --help", 0, "RUN.yaml"),
    "help": ("--help", 0, "The tables and figures of MetaLoRA"),
}  # fmt: skip
MERGES = {  # of the command `metalora`, on a base that a run describes
    "merge of a missing file": ("merge {}/none --model run:{}/run.yaml --out {}/m", 2, "none: no such adapter file"),
    "merge into the wrong base": (
        "merge {}/adapter.safetensors --model run:{}/run.yaml --out {}/m", 2, "adapter.safetensors: ",
    ),
    "merge for a missing condition": (
        "merge {}/adapter.safetensors --model run:{}/run.yaml --out {}/m --condition {}/none", 2, "no such condition",
    ),
}  # fmt: skip


@pytest.mark.parametrize("arguments, code, fragment", COMMANDS.values(), ids=COMMANDS)
def test_commands(arguments, code, fragment, files):
    check_command(papers_command, "metalora-papers", arguments, code, fragment, files)


@pytest.mark.parametrize("arguments, code, fragment", MERGES.values(), ids=MERGES)
def test_merges(arguments, code, fragment, files):
    check_command(metalora_command, "metalora", arguments, code, fragment, files)


USAGE = {"unknown verb": "trian x.yaml", "no file": "train", "unknown table": "table mt"}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_says_what_is_known(arguments):
    check_usage(papers_command, arguments)


def test_help_imports_no_torch():
    commands = [["--help"], ["train", "--help"], ["table", "--help"]]
    assert heavy_imports("metalora-papers", "metalora_papers.cli", commands) == ""


# ---- train, eval, merge --------------------------------------------------------------------------------------------
def test_train_writes_the_row_the_adapter_and_no_more(trained, files):
    assert trained.row["config"]["method"] == "metalora-cp" and 0 <= trained.row["results"]["k5"]["trained_mean"] <= 1
    found = {str(path.relative_to(files / "out")) for path in (files / "out").rglob("*") if path.is_file()}
    key = trained.row["key"]
    assert {name for name in found if "claims" not in name} == {"rows.jsonl", f"adapters/{key}.safetensors"}


def test_train_again_prints_the_row_that_is_there(trained, files, monkeypatch):
    from metalora_papers import jobs

    monkeypatch.setattr(jobs, "execute", lambda *_, **__: pytest.fail("a finished run was run again"))
    code, out, _ = papers_command("train", files / "run.yaml", "--out", files / "out")
    assert code == 0 and "k5.trained_mean" in out and "adapter:" in out
    assert f"{trained.row['results']['k5']['trained_mean']:.4f}" in out


def test_eval_gives_the_numbers_of_the_row(trained, files):
    code, out, _ = papers_command("eval", files / "run.yaml", "--adapter", trained.adapter, "--json")
    found = json.loads(out)
    assert code == 0 and "k5" in found and found == {name: trained.row["results"][name] for name in found}


def test_eval_without_an_adapter_scores_the_backbone(files, trained):
    code, out, _ = papers_command("eval", files / "original.yaml", "--json")
    assert code == 0 and json.loads(out)["stats_lda"] == trained.row["results"]["stats_lda"]
    assert "own_condition" not in json.loads(out)


def test_train_of_the_original_has_no_adapter(files, trained):
    code, out, _ = papers_command("train", files / "original.yaml", "--out", files / "original", "--json")
    assert code == 0 and json.loads(out)["adapter"] is None and not (files / "original" / "adapters").exists()


def test_a_merged_file_is_the_adapted_model_for_its_condition(trained, files):
    from safetensors.torch import load_file

    arguments = ("merge", trained.adapter, "--model", f"run:{files}/run.yaml", "--out", files / "merged.safetensors")
    code, out, _ = metalora_command(*arguments, "--condition", files / "condition.safetensors", "--json")
    assert code == 0 and json.loads(out)["bytes"] == (files / "merged.safetensors").stat().st_size
    plain = open_suite(load_run(files / "run.yaml")).model
    before = plain(trained.query)
    plain.load_state_dict(load_file(files / "merged.safetensors"))
    with torch.no_grad():
        # float32: W + Delta W rounds once, the cut adds two convolutions
        torch.testing.assert_close(plain(trained.query), trained.features, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, trained.features, rtol=1e-4, atol=1e-5)


def test_a_generated_adapter_is_not_merged_without_a_condition(trained, files):
    arguments = ("merge", trained.adapter, "--model", f"run:{files}/run.yaml", "--out", files / "none")
    code, out, err = metalora_command(*arguments)
    assert (code, out) == (2, "") and "condition" in err and err.count("\n") == 1 and not (files / "none").exists()


def test_a_file_of_another_kind_is_no_condition(trained, files):
    arguments = ("merge", trained.adapter, "--model", f"run:{files}/run.yaml", "--out", files / "none")
    code, _, err = metalora_command(*arguments, "--condition", trained.adapter)
    assert code == 2 and "not a metalora-condition file" in err and err.count("\n") == 1


def test_an_exported_folder_is_the_adapted_model_for_its_condition(trained, files):
    peft = pytest.importorskip("peft")
    arguments = ("export", trained.adapter, "--to", "lora", "--model", f"run:{files}/run.yaml", "--out", files / "lora")
    code, out, _ = metalora_command(*arguments, "--condition", files / "condition.safetensors", "--json")
    [found] = json.loads(out)
    assert code == 0 and found["folder"] == str(files / "lora") and found["error"] == 0
    plain = open_suite(load_run(files / "run.yaml")).model
    with torch.no_grad():
        got = peft.PeftModel.from_pretrained(plain, files / "lora").eval()(trained.query)
    torch.testing.assert_close(got, trained.features, rtol=1e-5, atol=1e-5)


def test_ctrl_c_says_that_the_same_command_goes_on(files, monkeypatch):
    from metalora_papers import jobs

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "execute", stop)
    code, _, err = papers_command("train", files / "run.yaml", "--out", files / "stopped", "--json")
    said = "metalora-papers: stopped; finished runs and checkpoints are kept, run the same command again to continue\n"
    assert code == 130 and err == said


def test_flags_override_the_file_also_with_a_default(tmp_path, monkeypatch):
    from metalora_papers import tables

    found = []
    monkeypatch.setattr(tables, "run_table", lambda name, table, out, **_: found.append(table))
    (tmp_path / "t.yaml").write_text("steps: 7\nlr: 0.1\nequal_rank: true\nseeds: [4]\n")
    command = ("table", "metalora", "--config", tmp_path / "t.yaml")
    assert papers_command(*command)[0] == 0
    flags = ("--steps", TableConfig().steps, "--no-equal-rank", "--seeds", 1, 2, "--pretrain-steps=9")
    assert papers_command(*command, *flags)[0] == 0
    plain, changed = found
    assert plain == TableConfig(steps=7, lr=0.1, equal_rank=True, seeds=(4,))
    assert changed == TableConfig(lr=0.1, seeds=(1, 2), pretrain_steps=9)


@pytest.mark.parametrize("verb", {**VERBS, **TABLES}.items(), ids=lambda verb: verb[0])
def test_every_number_among_the_flags_declares_a_range(verb):
    for name, hint in typing.get_type_hints(verb[1], include_extras=True).items():
        arguments = {typing.get_origin(hint) or hint, *typing.get_args(getattr(hint, "__origin__", hint))}
        parts = getattr(hint, "__metadata__", ())
        assert not arguments & {int, float} or any(isinstance(part, Range) for part in parts), name
