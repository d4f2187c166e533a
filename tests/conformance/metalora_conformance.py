"""A pytest plugin: PEFT's tests with this library's configurations in place of PEFT's, and tiny models made here.

Only tests that run over one of PEFT's lists of configurations are kept.
"""

import contextlib
import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cases import FILES, TINY, lists
from families import FAMILIES

AUTO_MODULE = "transformers.models.auto.modeling_auto"
KEPT_TESTS = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Import PEFT's test modules and put our rows into their parametrisations."""
    stub = types.ModuleType("diffusers")  # PEFT's tests ask whether a model is one of its pipelines
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    sys.modules.setdefault("diffusers", stub)
    config_class = FAMILIES[os.environ["METALORA_FAMILY"]]
    importlib.import_module("tests.testing_common").hub_online_once = contextlib.nullcontext
    kept: set[str] = set()
    for path in filter(os.path.exists, FILES):
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        module.hub_online_once = contextlib.nullcontext
        getattr(module, "PREFIXES", {})[config_class] = "metalora_"
        kept |= _replace_rows_in_module(module, lists(config_class))
    config.stash[KEPT_TESTS] = kept
    _restore_method_of_old_transformers()
    _load_tiny_models_without_the_hub()


def _replace_rows_in_module(module: types.ModuleType, our_rows: dict[str, list[Any]]) -> set[str]:
    """Put our rows into the tests of a module.

    Args:
        module: A test module of PEFT's.
        our_rows: Name of a list in a test module, or "module.name" -> the rows that replace the list.

    Returns:
        The tests that have our rows, as "module.test".
    """
    short_name = _short_name(module)
    # A parametrisation holds the list itself, so lists are recognised by their identity.
    rows_by_list_id = {}
    for name, value in vars(module).items():
        rows = our_rows.get(f"{short_name}.{name}", our_rows.get(name))
        if rows is not None:
            rows_by_list_id[id(value)] = rows
    kept = set()
    test_classes = [value for value in vars(module).values() if isinstance(value, type)]
    for owner in (module, *test_classes):
        for name, function in list(vars(owner).items()):
            if name.startswith("test") and _replace_rows(function, rows_by_list_id):
                kept.add(f"{short_name}.{name}")
    return kept


def _replace_rows(function: Any, rows_by_list_id: dict[int, list[Any]]) -> bool:
    """Put our rows into a test's parametrisations; returns whether any of them used one of PEFT's lists."""
    marks, replaced = [], False
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize" and id(mark.args[1]) in rows_by_list_id:
            replaced = True
            mark = pytest.mark.parametrize(mark.args[0], rows_by_list_id[id(mark.args[1])]).mark
        marks.append(mark)
    if replaced:
        function.pytestmark = marks
    return replaced


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that name a method of PEFT's themselves."""
    kept_names = config.stash[KEPT_TESTS]
    kept, left_out = [], []
    for item in items:
        is_kept = f"{_short_name(item.module)}.{item.originalname}" in kept_names
        (kept if is_kept else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _short_name(module: types.ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _restore_method_of_old_transformers() -> None:
    """Define the method of encoder-decoders that PEFT before 0.21 replaces and that transformers 5 does not have."""
    name = "_prepare_encoder_decoder_kwargs_for_generation"
    setattr(transformers.GenerationMixin, name, getattr(transformers.GenerationMixin, name, None))


def _load_tiny_models_without_the_hub() -> None:
    """Let every `from_pretrained` build the tiny models by their names on the Hub, without the Hub."""
    auto_classes = [
        value for name, value in vars(importlib.import_module(AUTO_MODULE)).items() if name.startswith("AutoModel")
    ]
    for loader in (transformers.PreTrainedModel, *auto_classes):  # each class has its own from_pretrained
        loader.from_pretrained = classmethod(_with_tiny_models(loader.from_pretrained.__func__))


def _with_tiny_models(original: Any) -> Any:
    """Return a `from_pretrained` that builds the models of `TINY` and calls the original for all others."""

    def from_pretrained(cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
        short_name = str(name).rpartition("/")[2]
        if short_name not in TINY or Path(str(name)).exists():
            return original(cls, name, *args, **kwargs)
        config_class, values = TINY[short_name]
        kwargs.pop("device_map", None)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", torch.float32))
        tiny_config = getattr(transformers, config_class)(**{"pad_token_id": 0, **values, **kwargs})
        make_model = cls.from_config if hasattr(cls, "from_config") else cls
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = make_model(tiny_config)
        model.name_or_path = model.config._name_or_path = str(name)
        return model.to(dtype).eval()

    return from_pretrained
