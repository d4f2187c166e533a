"""The command line in-process: arguments in; exit code, one line of error or a table or JSON out."""

import json
import subprocess
import sys

import pytest
import torch

import metalora
from support.command import check_command, check_usage, heavy_imports, metalora_command, write_resnet_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Only one sample available", "ignore:.*the condition is ignored")
PLAN = "plan --model roberta-base --targets query,value"
INSPECT = "inspect --model timm:resnet18"
EXPORT, RESNET = "export {}/adapter.safetensors --to lora", "--model timm:resnet10t@{}/resnet.safetensors"
SPECTRA = "--targets layer1.0.conv1 --match-params 3000 --by-spectra"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that commands read: a broken one, and the adapter of a timm model."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("cli")
    (folder / "broken.safetensors").write_bytes(b"no adapter")
    write_resnet_adapter(folder)
    return folder


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
    "broken adapter file": (
        "inspect --file {}/broken.safetensors", 2, "broken.safetensors: not a complete adapter file",
    ),
    "a folder for a file": ("inspect --file {}", 2, "a directory, expected an adapter file"),
    "merge of shards into a file": (
        f"merge {{}}/adapter.safetensors {RESNET} --out {{}}/m --max-shard-size 2GB", 2, "-size is for a folder",
    ),
    "export of a task and all": (f"{EXPORT} {RESNET} --out {{}}/m --task 0 --all-tasks", 2, "--task or --all-tasks"),
    "export of a missing file": (f"export {{}}/none --to lora --out {{}}/m {RESNET}", 2, "no such adapter file"),
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
    "a number out of its range": (f"{INSPECT} --rank -1", 2, "AdapterConfig.rank is -1, expected at least 1"),
    "the same in a part": (f"{INSPECT} --condition.hidden 0", 2, "hidden is 0, expected at least 1"),
    "export into what is there": (f"{EXPORT} {RESNET} --out {{}}", 2, "exists already"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, code, fragment", COMMANDS.values(), ids=COMMANDS)
def test_commands(arguments, code, fragment, files):
    check_command(metalora_command, "metalora", arguments, code, fragment, files)


USAGE = {
    "unknown verb": "pln",
    "no base": "merge adapter --out m",
    "a verb of the papers": "train run.yaml",
    "unknown flag": "methods --jsn",
    "unknown flag of a part": "bench --condition.hiden 3",
    "no number": "bench --rank x",
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_says_what_is_known(arguments):
    check_usage(metalora_command, arguments)


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
    shown = json.loads(out)
    adapter = metalora.attach(timm.create_model("resnet18", pretrained=False), metalora.AdapterConfig("lora", 4))
    assert code == 0 and [row["target"] for row in shown["targets"]] == list(adapter.targets)
    assert shown["parameters"] == sum(row["parameters"] for row in shown["targets"]) == adapter.num_params()


def test_inspect_of_a_file_is_json_of_what_it_holds(files):
    code, out, _ = metalora_command("inspect", "--file", files / "adapter.safetensors", "--json")
    shown = json.loads(out)
    assert code == 0 and shown["config"]["method"] == "lora" and list(shown["targets"]) == ["layer1.0.conv1"]
    assert shown["bytes"] == (files / "adapter.safetensors").stat().st_size
    numbers = sum(torch.Size(shape).numel() for shape in shown["tensors"].values())
    assert numbers == shown["num_params"]


def test_inspect_estimates_the_bytes_of_the_file(files):
    arguments = "inspect --model timm:resnet10t --rank 2 --targets layer1.0.conv1 --json"
    shown = json.loads(metalora_command(*arguments.split())[1])
    size = (files / "adapter.safetensors").stat().st_size
    assert shown["parameters"] * 4 < size and 0.5 < shown["bytes"] / size < 2


# ---- export ---
def test_export_says_what_a_cut_rank_costs(files):
    pytest.importorskip("peft")
    arguments = f"{EXPORT} {RESNET} --out {{}}/cut --max-rank 1".replace("{}", str(files)).split()
    code, out, _ = metalora_command(*arguments)
    record = dict(zip(*(line.split("\t") for line in out.splitlines()[1:]), strict=True))
    assert code == 0 and (record["rank"], record["error"], record["worst target"]) == ("1", "0", "0")


@pytest.mark.parametrize("arguments", [["methods"], ["plan", "--help"]], ids=" ".join)
def test_a_reader_that_stops_reading_ends_it_quietly(arguments):
    code = f"import sys\nfrom metalora.cli.main import main\nsys.argv = ['metalora', *{arguments}]\nmain()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b"" and running.wait() == 1


# ---- start-up ------------------------------------------------------------------------------------------------------
def test_help_and_methods_import_no_torch():
    commands = [["--help"], ["plan", "--help"], ["sweep", "--help"], ["methods", "--json"]]
    assert heavy_imports("metalora", "metalora.cli.main", commands) == ""
