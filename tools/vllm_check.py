"""Read our LoRA exports with vLLM's own reader: `python tools/vllm_check.py [--wheel FILE]`.

vLLM needs another torch and another transformers than the tests, and several gigabytes. Its reader of LoRAs is four
files of its wheel that only compute with names and tensors: these are run as they are, and all other modules of vLLM
that they import are stubs. The wheel (340 MB) is downloaded with pip, without its dependencies, unless it is given.

For each method it checks that vLLM accepts the configuration, knows every name, and holds A and B whose product with
vLLM's own scaling is Delta W of the adapter.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import metalora

READER = ("vllm.lora.peft_helper", "vllm.lora.lora_model", "vllm.lora.lora_weights", "vllm.lora.utils")
MODEL = "vllm/model_executor/models/llama.py"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
CONSTANT = metalora.ConditionConfig(scope="constant")
SUPPORT = metalora.ConditionConfig(scope="support", labelled=False)
CONFIGS = {
    "lora": metalora.AdapterConfig("lora", 4, targets=(*ATTENTION, "gate_proj", "down_proj")),
    "rslora": metalora.AdapterConfig("rslora", 4, alpha=8.0, targets=ATTENTION),
    "metatt-4d": metalora.AdapterConfig("metatt-4d", 4, targets=ATTENTION),
    "metatt-4+1d": metalora.AdapterConfig("metatt-4+1d", 4, targets=("q_proj", "v_proj"), tasks=3, condition=CONSTANT),
    "metalora-cp": metalora.AdapterConfig("metalora-cp", 4, targets=(*ATTENTION, "up_proj"), condition=SUPPORT),
    "tenslora-qkv-cp": metalora.AdapterConfig("tenslora-qkv-cp", 4, targets=("q_proj", "k_proj", "v_proj")),
    "embedding and head": metalora.AdapterConfig("lora", 4, targets=("embed_tokens", "lm_head", "q_proj")),
}


class _Stub(ModuleType):
    """A module of vLLM that the reader imports and does not call."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _LOGGER if name == "init_logger" else type(name, (), {})


class _Logger:
    """A logger that drops everything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


_LOGGER: Callable[[str], _Logger] = lambda name: _Logger()  # noqa: E731


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the reader in an unpacked wheel, and a stub for each other module of vLLM."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return where a module of vLLM is."""
        if name in READER:
            return importlib.util.spec_from_file_location(name, self.folder / (name.replace(".", "/") + ".py"))
        is_of_vllm = name.partition(".")[0] == "vllm"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_of_vllm else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Make a stub."""
        stub = _Stub(spec.name)
        stub.PIN_MEMORY = False  # type: ignore[attr-defined]
        return stub

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stub has no code."""


def unpacked(wheel: Path | None, folder: Path) -> tuple[Path, str]:
    """Unpack the reader, and return the folder and the version of vLLM."""
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), "vllm"], check=True)
        (wheel,) = folder.glob("vllm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in (*(module.replace(".", "/") + ".py" for module in READER), MODEL):
            archive.extract(name, folder)
    return folder, wheel.name.split("-")[1]


def expected_modules(folder: Path) -> set[str]:
    """Return the names that vLLM's Llama takes a LoRA of: its linear layers, and its embeddings."""
    tree = ast.parse((folder / MODEL).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "LlamaForCausalLM"]
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in classes[0].body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    packed = [part for parts in assigned["packed_modules_mapping"].values() for part in parts]
    return {*packed, *assigned["embedding_modules"], "o_proj", "down_proj"}


def adapted(config: metalora.AdapterConfig) -> tuple[metalora.Adapter, dict[str, Any]]:
    """Return an adapter of a small Llama with drawn numbers, and what its export needs."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).eval()
    ids = {"input_ids": torch.randint(64, (3, 7))}
    adapter = metalora.attach(model, config, example=ids)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    adapter.requires_grad_(False)
    if config.tasks > 1:
        return adapter, {"task": 2}
    return adapter, {"condition": adapter.condition(ids)} if adapter.conditional else {}


def largest_difference(folder: Path, adapter: metalora.Adapter, options: dict[str, Any], known: set[str]) -> float:
    """Read an export as vLLM's worker does, and return the largest relative error of scaling . B A from Delta W."""
    from vllm.lora.lora_model import LoRAModel  # type: ignore[import-not-found]
    from vllm.lora.peft_helper import PEFTHelper  # type: ignore[import-not-found]

    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=2048)
    helper.validate_legal(SimpleNamespace(max_lora_rank=16))
    read = LoRAModel.from_local_checkpoint(
        str(folder), known, helper, lora_model_id=1, device="cpu", dtype=torch.float32, model_vocab_size=64
    )
    assert read.loras.keys() == adapter.targets.keys(), f"vLLM reads {sorted(read.loras)}"
    condition = adapter.task(options["task"]) if "task" in options else options.get("condition")
    differences = []
    for path, lora in read.loras.items():
        product = lora.scaling * lora.lora_b.double() @ lora.lora_a.double()
        delta = adapter.delta(path, condition)
        delta = delta.mT if path.endswith("embed_tokens") else delta  # the table is A' B', as PEFT writes it
        differences.append((product - delta).norm() / delta.norm())
    return float(torch.stack(differences).max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Check every configuration; an exception says which one vLLM would not read."""
    parser = argparse.ArgumentParser(description="Read our LoRA exports with vLLM's own reader.")
    parser.add_argument("--wheel", type=Path, help="a wheel of vLLM that was downloaded before")
    wheel = parser.parse_args(arguments).wheel
    with tempfile.TemporaryDirectory() as temporary:
        folder, version = unpacked(wheel, Path(temporary))
        sys.meta_path.insert(0, _Finder(folder))
        known = expected_modules(folder)
        for name, config in CONFIGS.items():
            adapter, options = adapted(config)
            adapter.export_lora(folder / name, **options, runtime="vllm")
            difference = largest_difference(folder / name, adapter, options, known)
            assert difference < 1e-5, f"{name}: vLLM would compute another update, {difference:.1e}"
            print(f"vllm {version}: {name} is read, |scaling B A - Delta W| <= {difference:.1e} |Delta W|")


if __name__ == "__main__":
    main()
