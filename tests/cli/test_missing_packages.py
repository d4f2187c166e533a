"""Only the core dependencies are installed: what works, and what a verb says about a package that is missing."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from metalora.cli.extras import EXTRAS, missing_package_message
from support.command import metalora_command
from support.fresh_process import run_fresh

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "sklearn": "scikit-learn",
}
OPTIONAL = (*EXTRAS, "scipy", "datasets")

CORE_ONLY = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))  # None: importing the module raises ModuleNotFoundError
import io
from contextlib import redirect_stdout
import torch
import metalora
from metalora.cli.main import main

class Body(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.head(self.conv(x).mean((-2, -1)))

model, images = Body(), torch.randn(2, 3, 8, 8)
base = model(images)
for method in ("lora", "metalora-cp", "loha"):
    condition = metalora.ConditionConfig(source="stages", stages=("conv",))
    config = metalora.AdapterConfig(method, 2, targets=("conv", "head"), condition=condition)
    adapter = metalora.attach(model, config, example=images)
    assert torch.equal(model(images), base)
    model(images).sum().backward()
    metalora.detach(model)
sys.argv = ["metalora", "methods", "--json"]
with redirect_stdout(io.StringIO()) as shown:
    main()
print("metalora-cp" in shown.getvalue())
"""


def test_the_core_dependencies_are_enough_to_attach_and_to_list_the_methods():
    done = run_fresh(CORE_ONLY)
    assert done.stdout.strip() == "True", done.stderr


VERBS = {  # missing module -> a command that needs it
    "timm": "inspect --model timm:resnet18",
    "torchvision": "plan --model torchvision:resnet18 --targets conv",
    "transformers": "plan --model roberta-base --targets query",
    "peft": "bench --what attach --methods lora --rounds 1 --layers 1",
    "matplotlib": "bench --plot {}/plot.png --methods --peers --rounds 1 --layers 1 --batch 1 --tokens 2",
    "psycopg": "tenants list --store postgresql://host/x",
}


@pytest.mark.parametrize("module, arguments", VERBS.items(), ids=VERBS)
def test_a_verb_says_which_extra_brings_a_missing_package(module, arguments, tmp_path, monkeypatch):
    from metalora.bench import memory, tasks

    monkeypatch.setattr(tasks, "ENCODER", dict(hidden_size=8, num_attention_heads=2, intermediate_size=8))
    monkeypatch.setattr(memory, "peak_bytes", lambda config, name: 0)
    imported = [name for name in sys.modules if name.partition(".")[0] == module]
    for name in (*imported, "metalora.bench.attaching", "metalora.serving.store.postgres"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = metalora_command(*arguments.format(tmp_path).split())
    expected = f'metalora: {module} is not installed: pip install "metalora[{EXTRAS[module]}]"'
    assert code == 2 and out == "" and err.splitlines()[-1] == expected and "Traceback" not in err


def test_another_missing_module_keeps_its_own_message():
    error = ModuleNotFoundError("No module named 'nothing'", name="nothing")
    assert missing_package_message(error) == "No module named 'nothing'"


@pytest.mark.parametrize("module", EXTRAS)
def test_an_extra_installs_what_it_is_named_for(module):
    requirements = PROJECT["optional-dependencies"][EXTRAS[module]]
    assert any(requirement.startswith(DISTRIBUTIONS.get(module, module)) for requirement in requirements)


def test_the_command_is_a_function():
    module, _, function = PROJECT["scripts"]["metalora"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
