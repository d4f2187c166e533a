"""Every error message in docs/faq.md is printed by a call, word by word."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metalora
from metalora import AdapterConfig, ConditionConfig
from metalora._util.extras import missing_package_message
from metalora.learner import AdaptedTask, MetaLearner
from support.command import metalora_command

FAQ = (Path(__file__).parents[1] / "docs" / "faq.md").read_text()
MESSAGES = re.findall(r"^#### `(.+)`$", FAQ, re.M)
INPUTS = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
SIDES = np.where(INPUTS[:, 0] > 0, "a", "b")
FROM_SUPPORT = ConditionConfig(scope="support", stages=("0",))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def adapted(method="lora", seed=0, **settings):
    """A network with an adapter, and the adapter."""
    model = network(seed)
    return model, metalora.attach(model, AdapterConfig(method, 2, targets="linear", **settings))


def layers_with_tasks():
    """Two numbered layers with three tasks, and the adapter."""
    model = nn.ModuleDict({"layer": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))})
    model.forward = model["layer"].forward
    return model, metalora.attach(model, AdapterConfig("metatt-4+1d", 2, targets="layer.*", tasks=3))


def frozen_learner():
    return MetaLearner(network(), adapter=None)


def write_table(name, header, row):
    rows = [",".join(cell.format(number, "ab"[number % 2]) for cell in row) for number in range(20)]
    Path(name).write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """A working directory with an adapter, a LoRA, a task, a learner, tables and damaged files."""
    with contextlib.chdir(tmp_path_factory.mktemp("faq")):
        write_files()
        yield


def write_files():
    model, adapter = adapted()
    metalora.save(model, "adapter.safetensors")
    adapter.export_lora("news")
    contents = Path("adapter.safetensors").read_bytes()
    Path("damaged.safetensors").write_bytes(contents[:-3] + bytes([contents[-3] ^ 1]) + contents[-2:])
    Path("short.safetensors").write_bytes(contents[:500])
    learner = frozen_learner()
    learner.adapt(INPUTS, SIDES).save_pretrained("task")
    learner.save_pretrained("learner")
    Path("empty").mkdir()
    write_table("one.csv", "text,topic", ("word {0}", "{1}"))
    write_table("two.csv", "text,topic,size", ("word {0}", "{1}", "{1}"))
    write_table("files.csv", "file,topic", ("{0}.png", "{1}"))
    write_table("numbers.csv", "number,topic", ("{0}", "{1}"))


def attach_twice():
    model, _ = adapted()
    metalora.attach(model, AdapterConfig("lora", 2))


def merge_twice():
    model, _ = adapted()
    metalora.merge(model)
    metalora.merge(model)


def command(line):
    """Raise the error that a command prints, without the name of the program."""
    code, _, error = metalora_command(*line.split())
    assert code == 2
    raise ValueError(error.removeprefix("metalora: ").rstrip("\n"))


def missing_package():
    raise ValueError(missing_package_message(ModuleNotFoundError("No module named 'timm'", name="timm")))


CALLS = (
    missing_package,
    lambda: metalora.attach(network(), AdapterConfig("lorra", 2)),
    lambda: MetaLearner(network(), step=3),
    lambda: MetaLearner("resnet18"),
    lambda: metalora.attach(network(), AdapterConfig("lora", 2, targets="query,value")),
    attach_twice,
    lambda: metalora.attach(network(), AdapterConfig("lora", 64)),
    lambda: metalora.attach(network(), AdapterConfig("metatt-4+1d", 2, tasks=3)),
    lambda: adapted("metalora-cp", condition=FROM_SUPPORT)[0](torch.rand(3, 8)),
    lambda: adapted("metalora-cp", condition=FROM_SUPPORT)[1].condition(torch.rand(6, 8)),
    lambda: adapted("metalora-cp", condition=FROM_SUPPORT)[1].condition(torch.rand(6, 8), torch.zeros(6).long()),
    lambda: layers_with_tasks()[0](torch.rand(3, 8)),
    lambda: layers_with_tasks()[0](torch.rand(3, 8), task_ids=torch.tensor([0, 1, 3])),
    lambda: metalora.load(network(seed=1), "adapter.safetensors"),
    lambda: metalora.load(network(), "damaged.safetensors"),
    lambda: metalora.load(network(), "short.safetensors"),
    lambda: metalora.load(network(), "other.safetensors"),
    merge_twice,
    lambda: frozen_learner().adapt(INPUTS, ["ripe"] * 60),
    lambda: frozen_learner().adapt(INPUTS, ["ripe"] + ["green"] * 59),
    lambda: frozen_learner().adapt(INPUTS[:20], [f"fruit {number}" for number in range(20)]),
    lambda: frozen_learner().adapt(INPUTS[:20], ["a", "b"] * 5 + [None] * 10),
    lambda: frozen_learner().adapt([*INPUTS[:6], INPUTS[6] * np.nan, *INPUTS[7:]], SIDES),
    lambda: command("adapt texts --support two.csv --text-column text --out new"),
    lambda: command("fit new --backbone minilm --data one.csv --text-column txt"),
    lambda: command("fit new --backbone minilm --data numbers.csv"),
    lambda: command("fit new --backbone efficientnet-lite0 --data files.csv"),
    lambda: MetaLearner(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())),
    lambda: AdaptedTask.from_pretrained("task", MetaLearner(network(seed=1), adapter=None)),
    lambda: MetaLearner.from_pretrained("learner"),
    lambda: AdaptedTask.from_pretrained("task", frozen_learner()).add(INPUTS, SIDES),
    lambda: command("serve empty --store tasks.db"),
    lambda: adapted("metalora-cp", condition=FROM_SUPPORT)[1].export_lora("new"),
    lambda: layers_with_tasks()[1].export_lora("new"),
    lambda: adapted()[1].export_lora("new", runtime="vllm", max_lora_rank=1),
    lambda: metalora.combine(network(), ["news"], weights=[1, 2]),
)


@pytest.mark.parametrize(("message", "call"), list(zip(MESSAGES, CALLS, strict=True)), ids=MESSAGES)
def test_a_message_is_printed(message, call):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    printed, start = str(raised.value), message.removesuffix("...").rstrip()
    assert printed == start or message.endswith("...") and printed.startswith(start)
