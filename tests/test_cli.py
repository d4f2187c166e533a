"""The command line in-process: arguments in; exit code, one line of error or a table or JSON out."""

import contextlib
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import metalora
from metalora.cli import main
from metalora.config import load_yaml
from metalora.experiments.config import RunConfig, TableConfig

pytestmark = pytest.mark.filterwarnings("ignore:Only one sample available", "ignore:.*the condition is ignored")
PLAN = "plan --model roberta-base --targets query,value"
INSPECT = "inspect --model timm:resnet18"
EXPORT, RESNET = "export {}/adapter.safetensors --to lora", "--model timm:resnet10t@{}/resnet.safetensors"
SPECTRA = "--targets layer1.0.conv1 --match-params 3000 --by-spectra"
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


def metalora_command(*arguments):
    """(exit code, stdout, stderr) of `metalora ARGUMENTS`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["metalora", *map(str, arguments)])
        patch.setenv("COLUMNS", "240")
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that commands read: a run, bad runs, the adapter of a timm model, and a cache of backbones of this file."""
    timm = pytest.importorskip("timm")
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
    model = timm.create_model("resnet10t", pretrained=False)
    metalora.attach(model, metalora.AdapterConfig("lora", 2, targets="layer1.0.conv1"))
    metalora.save(model, folder / "adapter.safetensors")
    metalora.detach(model)
    save_file(model.state_dict(), folder / "resnet.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALORA_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def trained(files):
    """The tiny run, trained: its row as printed, its adapter, a condition made through the API."""
    from metalora.experiments.runs import prepare

    pytest.importorskip("accelerate")
    code, out, err = metalora_command("train", files / "run.yaml", "--out", files / "out", "--json")
    assert (code, err) == (0, "")
    row = json.loads(out)
    prepared = prepare(load_yaml(RunConfig, files / "run.yaml"))
    adapter = metalora.load(prepared.model, row["adapter"])
    episode = prepared.experiment.test_episode("frame", 0)
    with torch.no_grad():
        condition = adapter.condition(episode.support_x, episode.support_y)
        condition.save(files / "condition.safetensors")
        features = prepared.model(episode.query_x, condition=condition)
    return SimpleNamespace(row=row, adapter=row["adapter"], query=episode.query_x, features=features)


# ---- a table of commands -------------------------------------------------------------------------------------------
COMMANDS = {  # arguments ({} is the folder of files), exit code, fragment of stdout (code 0) or of stderr
    "methods": ("methods", 0, "metalora-tr"),
    "inspect a model": (f"{INSPECT} --rank 4", 0, "layer1.0.conv1"),
    "inspect says the size": (f"{INSPECT} --targets layer1.0.conv1", 0, "5,120 parameters at 1 targets"),
    "plan": (f"{PLAN} --method metatt-4d --rank 8", 0, "13,184 parameters at 24 targets"),
    "plan of a number": (f"{PLAN} --method lotr --match-params 73728", 0, "ranks r1 32, r2 32"),
    "plan of one rank": (f"{PLAN} --method fact-tk --match-rank 8", 0, "ranks r1 8, r2 8, r3 8"),
    "plan by spectra of nothing": (f"{PLAN} --by-spectra", 2, "--by-spectra shares out the parameters of"),
    "plan of gates": (f"{PLAN} --method quanta", 0, "ranks none"),
    "plan by spectra": (f"plan {RESNET} --method tenslora-depth {SPECTRA}", 0, "tenslora-depth on timm:resnet10t@"),
    "plan of both": (f"{PLAN} --match-rank 8 --match-params 9", 2, "either --match-params or --match-rank"),
    "plan of too few": (f"{PLAN} --match-params 9", 2, "match_params 9: 'lora' has 36864 numbers at rank 1"),
    "methods as markdown": ("methods --markdown", 0, "# Methods"),
    "plan as json": (f"{PLAN} --json", 0, '"parameters": 294912'),
    "inspect a file": ("inspect --file {}/adapter.safetensors", 0, '"layer1.0.conv1"'),
    "help": ("--help", 0, "Tensor-network adapters"),
    "help of a verb": ("train --help", 0, "RUN.yaml"),
    "inspect nothing": ("inspect", 2, "inspect takes either --model or --file"),
    "inspect both": (f"{INSPECT} --file {{}}/adapter.safetensors", 2, "inspect takes either --model or --file"),
    "unknown model": ("inspect --model timm:resnet81", 2, "timm:resnet81: unknown; did you mean 'resnet18'?"),
    "unknown library": ("inspect --model tim:resnet18", 2, "did you mean 'timm'?"),
    "a model without a library": ("inspect --model resnet18", 2, "expected timm:NAME, torchvision:NAME, hf:FOLDER or"),
    "unknown torchvision model": ("inspect --model torchvision:resnet81", 2, "did you mean 'resnet18'?"),
    "unknown method": (f"{INSPECT} --method metalora-pc", 2, "did you mean 'metalora-cp'?"),
    "unknown target": (f"{INSPECT} --targets layer1.0.conf1", 2, "did you mean 'layer1.0.conv1'?"),
    "rank too large": (f"{INSPECT} --rank 4096", 2, "rank 4096 of bond 'r' is above"),
    "no adapter file": ("inspect --file {}/none.safetensors", 2, "none.safetensors: no such adapter file"),
    "broken adapter file": ("inspect --file {}/broken.safetensors", 2, "broken.safetensors: not a whole adapter file"),
    "a folder for a file": ("inspect --file {}", 2, "a directory, expected an adapter file"),
    "no run file": ("train {}/none.yaml", 2, "none.yaml: no such file"),
    "unknown key": ("train {}/unknown-key.yaml", 2, "unknown-key.yaml: unknown key 'trian'; did you mean 'train'?"),
    "unknown suite": ("eval {}/unknown-suite.yaml", 2, "unknown choice 'atributes'; did you mean 'attributes'?"),
    "unknown method in a run": ("train {}/unknown-method.yaml --out {}/bad --json", 2, "did you mean 'metalora-cp'?"),
    "unknown data": ("eval {}/unknown-data.yaml", 2, "unknown image set 'digit'; did you mean 'digits'?"),
    "unknown key of a table": ("table metalora --config {}/table.yaml", 2, "'stpes'; did you mean 'steps'?"),
    "unknown row of a table": ("table metalora --methods lroa --out {}/t", 2, "'lroa'; did you mean 'lora'?"),
    "eval of a missing adapter": ("eval {}/run.yaml --adapter {}/none.safetensors", 2, "no such adapter file"),
    "merge without a base": ("merge {}/adapter.safetensors --out {}/m", 2, "merge takes either --model or --run"),
    "merge of a missing file": ("merge {}/none --run {}/run.yaml --out {}/m", 2, "none: no such adapter file"),
    "merge into the wrong base": (
        "merge {}/adapter.safetensors --run {}/run.yaml --out {}/m", 2, "adapter.safetensors: ",
    ),
    "merge for a missing condition": (
        "merge {}/adapter.safetensors --run {}/run.yaml --out {}/m --condition {}/none", 2, "no such condition file",
    ),
    "merge of shards into a file": (
        f"merge {{}}/adapter.safetensors {RESNET} --out {{}}/m --max-shard-size 2GB", 2, "-size is for a folder",
    ),
    "export without a base": (f"{EXPORT} --out {{}}/m", 2, "export takes either --model or --run"),
    "export of a task and all": (f"{EXPORT} {RESNET} --out {{}}/m --task 0 --all-tasks", 2, "--task or --all-tasks"),
    "export of a missing file": ("export {}/none --to lora --out {}/m --run {}/run.yaml", 2, "no such adapter file"),
    "export for a missing condition": (f"{EXPORT} {RESNET} --out {{}}/m --condition {{}}/none", 2, "condition file"),
    "export of no tasks": (f"{EXPORT} {RESNET} --out {{}}/m --all-tasks", 2, "lora with tasks=1 has no tasks"),
    "export of a convolution for vllm": (
        f"{EXPORT} {RESNET} --out {{}}/m --for vllm", 2, "vllm has no LoRA for target 'layer1.0.conv1', a conv2d",
    ),
    "import of a missing file": (f"import {{}}/none {RESNET} --out {{}}/m", 2, "none: no such file or folder"),
    "import of another file": (
        f"import {{}}/broken.safetensors {RESNET} --out {{}}/m", 2, "broken.safetensors: truncated or damaged",
    ),
    "import of a folder of runs": (f"import {{}} {RESNET} --out {{}}/m", 2, "no adapter_config.json, expected"),
    "export into what is there": (f"{EXPORT} {RESNET} --out {{}}", 2, "exists already"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, code, fragment", COMMANDS.values(), ids=COMMANDS)
def test_commands(arguments, code, fragment, files):
    found, out, err = metalora_command(*arguments.replace("{}", str(files)).split())
    assert found == code, err
    assert fragment in (out if code == 0 else err)
    if code:
        assert out == "" and err.startswith("metalora: ") and err.count("\n") == 1
    assert not (files / "m").exists()


USAGE = {
    "unknown verb": "trian x.yaml",
    "no file": "train",
    "unknown flag": "methods --jsn",
    "unknown table": "table mt",
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_says_what_is_known(arguments):
    code, out, err = metalora_command(*arguments.split())
    assert code == 2 and out == "" and "Traceback" not in err and len(err) > 40


def test_a_misspelt_preset_names_the_preset():
    code, _, err = metalora_command(*INSPECT.split(), "--targets", "liner")
    assert code == 2 and "did you mean 'linear'" in err


# ---- JSON ----------------------------------------------------------------------------------------------------------
def test_methods_as_json_lists_every_method():
    code, out, err = metalora_command("methods", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "") and [row["name"] for row in rows] == list(metalora.methods())
    assert all(row["formula"] and row["source"] and row["count"] and row["factors"] for row in rows)


def test_inspect_as_json_is_what_attach_makes():
    import timm

    code, out, _ = metalora_command(*INSPECT.split(), "--rank", "4", "--json")
    found = json.loads(out)
    adapter = metalora.attach(timm.create_model("resnet18", pretrained=False), metalora.AdapterConfig("lora", 4))
    assert code == 0 and [row["target"] for row in found["targets"]] == list(adapter.targets)
    assert found["parameters"] == sum(row["parameters"] for row in found["targets"]) == adapter.num_params()


def test_inspect_of_a_file_is_json_of_what_it_holds(files):
    code, out, _ = metalora_command("inspect", "--file", files / "adapter.safetensors", "--json")
    found = json.loads(out)
    assert code == 0 and found["config"]["method"] == "lora" and list(found["targets"]) == ["layer1.0.conv1"]
    assert found["bytes"] == (files / "adapter.safetensors").stat().st_size
    numbers = sum(torch.Size(shape).numel() for shape in found["tensors"].values())
    assert numbers == found["num_params"]


def test_inspect_estimates_the_bytes_of_the_file(files):
    arguments = "inspect --model timm:resnet10t --rank 2 --targets layer1.0.conv1 --json"
    found = json.loads(metalora_command(*arguments.split())[1])
    size = (files / "adapter.safetensors").stat().st_size
    assert found["parameters"] * 4 < size and 0.5 < found["bytes"] / size < 2


# ---- train, eval, merge --------------------------------------------------------------------------------------------
def test_train_writes_the_row_the_adapter_and_no_more(trained, files):
    assert trained.row["config"]["method"] == "metalora-cp" and 0 <= trained.row["results"]["k5"]["trained_mean"] <= 1
    found = {str(path.relative_to(files / "out")) for path in (files / "out").rglob("*") if path.is_file()}
    key = trained.row["key"]
    assert {name for name in found if "claims" not in name} == {"rows.jsonl", f"adapters/{key}.safetensors"}


def test_train_again_prints_the_row_that_is_there(trained, files, monkeypatch):
    from metalora.experiments import pool

    monkeypatch.setattr(pool, "execute", lambda *_, **__: pytest.fail("a finished run was run again"))
    code, out, _ = metalora_command("train", files / "run.yaml", "--out", files / "out")
    assert code == 0 and "k5.trained_mean" in out and "adapter:" in out
    assert f"{trained.row['results']['k5']['trained_mean']:.4f}" in out


def test_eval_gives_the_numbers_of_the_row(trained, files):
    code, out, _ = metalora_command("eval", files / "run.yaml", "--adapter", trained.adapter, "--json")
    found = json.loads(out)
    assert code == 0 and "k5" in found and found == {name: trained.row["results"][name] for name in found}


def test_eval_without_an_adapter_scores_the_backbone(files, trained):
    code, out, _ = metalora_command("eval", files / "original.yaml", "--json")
    assert code == 0 and json.loads(out)["stats_lda"] == trained.row["results"]["stats_lda"]
    assert "own_condition" not in json.loads(out)


def test_train_of_the_original_has_no_adapter(files, trained):
    code, out, _ = metalora_command("train", files / "original.yaml", "--out", files / "original", "--json")
    assert code == 0 and json.loads(out)["adapter"] is None and not (files / "original" / "adapters").exists()


def test_a_merged_file_is_the_adapted_model_for_its_condition(trained, files):
    from safetensors.torch import load_file

    from metalora.experiments.runs import prepare

    arguments = ("merge", trained.adapter, "--run", files / "run.yaml", "--out", files / "merged.safetensors")
    code, out, _ = metalora_command(*arguments, "--condition", files / "condition.safetensors", "--json")
    assert code == 0 and json.loads(out)["bytes"] == (files / "merged.safetensors").stat().st_size
    plain = prepare(load_yaml(RunConfig, files / "run.yaml")).model
    before = plain(trained.query)
    plain.load_state_dict(load_file(files / "merged.safetensors"))
    with torch.no_grad():
        # float32: W + Delta W rounds once, the cut adds two convolutions
        torch.testing.assert_close(plain(trained.query), trained.features, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, trained.features, rtol=1e-4, atol=1e-5)


def test_a_generated_adapter_is_not_merged_without_a_condition(trained, files):
    code, out, err = metalora_command("merge", trained.adapter, "--run", files / "run.yaml", "--out", files / "none")
    assert (code, out) == (2, "") and "condition" in err and err.count("\n") == 1 and not (files / "none").exists()


def test_a_file_of_another_kind_is_no_condition(trained, files):
    arguments = ("merge", trained.adapter, "--run", files / "run.yaml", "--out", files / "none")
    code, _, err = metalora_command(*arguments, "--condition", trained.adapter)
    assert code == 2 and "not a condition file" in err and err.count("\n") == 1


def test_an_exported_folder_is_the_adapted_model_for_its_condition(trained, files):
    from metalora.experiments.runs import prepare

    peft = pytest.importorskip("peft")
    arguments = ("export", trained.adapter, "--to", "lora", "--run", files / "run.yaml", "--out", files / "lora")
    code, out, _ = metalora_command(*arguments, "--condition", files / "condition.safetensors", "--json")
    [found] = json.loads(out)
    assert code == 0 and found["folder"] == str(files / "lora") and found["error"] == 0
    plain = prepare(load_yaml(RunConfig, files / "run.yaml")).model
    with torch.no_grad():
        got = peft.PeftModel.from_pretrained(plain, files / "lora").eval()(trained.query)
    torch.testing.assert_close(got, trained.features, rtol=1e-5, atol=1e-5)


def test_export_says_what_a_cut_rank_costs(files):
    pytest.importorskip("peft")
    arguments = f"{EXPORT} {RESNET} --out {{}}/cut --max-rank 1".replace("{}", str(files)).split()
    code, out, _ = metalora_command(*arguments)
    assert code == 0 and "worst target" in out and out.split("│")[3:6] == [" 1    ", " 0     ", " 0            "]


def test_ctrl_c_says_that_the_same_command_goes_on(files, monkeypatch):
    from metalora.experiments import pool

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "execute", stop)
    code, _, err = metalora_command("train", files / "run.yaml", "--out", files / "stopped", "--json")
    assert (
        code == 130 and err == "metalora: stopped; finished runs and checkpoints are kept, the same command goes on\n"
    )


def test_flags_override_the_file_also_with_a_default(tmp_path, monkeypatch):
    from metalora.experiments import tables

    found = []
    monkeypatch.setattr(tables, "run_table", lambda table, out, **_: found.append(table))
    (tmp_path / "t.yaml").write_text("steps: 7\nlr: 0.1\nequal_rank: true\nseeds: [4]\n")
    command = ("table", "metalora", "--config", tmp_path / "t.yaml")
    assert metalora_command(*command)[0] == 0
    flags = ("--steps", TableConfig().steps, "--no-equal-rank", "--seeds", 1, 2, "--pretrain-steps=9")
    assert metalora_command(*command, *flags)[0] == 0
    plain, changed = found
    assert plain == TableConfig(steps=7, lr=0.1, equal_rank=True, seeds=(4,))
    assert changed == TableConfig(lr=0.1, seeds=(1, 2), pretrain_steps=9)


@pytest.mark.parametrize("arguments", [["methods"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_stops_reading_ends_it_quietly(arguments):
    code = f"import sys\nfrom metalora.cli import main\nsys.argv = ['metalora', *{arguments}]\nmain()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() == 1


# ---- start-up ------------------------------------------------------------------------------------------------------
def test_help_and_methods_import_no_torch():
    code = """
import contextlib, io, sys
from metalora.cli import main
for arguments in (["--help"], ["train", "--help"], ["table", "--help"], ["methods", "--json"]):
    sys.argv = ["metalora", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
print([name for name in ("torch", "timm", "transformers", "peft", "accelerate", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
