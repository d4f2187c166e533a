"""A pytest plugin: PEFT's tests with this library's configurations in place of its own, and tiny models made here.

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

AUTO = "transformers.models.auto.modeling_auto"
RETARGETED = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Import PEFT's test modules and put our rows into their parametrisations."""
    stub = types.ModuleType("diffusers")  # PEFT's tests ask whether a model is one of its pipelines
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    sys.modules.setdefault("diffusers", stub)
    ours = lists(FAMILIES[os.environ["METALORA_FAMILY"]])
    kept: set[str] = set()
    importlib.import_module("tests.testing_common").hub_online_once = contextlib.nullcontext
    for path in filter(os.path.exists, FILES):
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        module.hub_online_once = contextlib.nullcontext
        getattr(module, "PREFIXES", {})[FAMILIES[os.environ["METALORA_FAMILY"]]] = "metalora_"
        short = module.__name__.rpartition(".")[2]
        known = {id(value): ours.get(f"{short}.{name}", ours.get(name)) for name, value in vars(module).items()}
        rows = {key: value for key, value in known.items() if value is not None}
        for owner in [module, *(one for one in vars(module).values() if isinstance(one, type))]:
            for name, function in list(vars(owner).items()):
                if name.startswith("test") and _retarget(function, rows):
                    kept.add(f"{short}.{name}")
    config.stash[RETARGETED] = kept
    _answer_for_the_past()
    _answer_for_the_hub()


def _retarget(function: Any, rows: dict[int, list[Any]]) -> bool:
    """Swap the rows of PEFT's lists in a test's parametrisations; whether there were any."""
    marks, found = [], False
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize" and id(mark.args[1]) in rows:
            found = True
            mark = pytest.mark.parametrize(mark.args[0], rows[id(mark.args[1])]).mark
        marks.append(mark)
    if found:
        function.pytestmark = marks
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that name a method of PEFT's themselves."""
    kept = config.stash[RETARGETED]
    mine = [item for item in items if f"{item.module.__name__.rpartition('.')[2]}.{item.originalname}" in kept]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine


def _answer_for_the_past() -> None:
    """Give PEFT before 0.21 the method of encoder-decoders that it keeps and puts back, and transformers 5 has not."""
    name = "_prepare_encoder_decoder_kwargs_for_generation"
    setattr(transformers.GenerationMixin, name, getattr(transformers.GenerationMixin, name, None))


def _answer_for_the_hub() -> None:
    """Let from_pretrained find the tiny models by their names on the Hub, without it."""
    autos = [one for name, one in vars(importlib.import_module(AUTO)).items() if name.startswith("AutoModel")]
    for loader in (transformers.PreTrainedModel, *autos):  # each of these has a from_pretrained of its own
        loader.from_pretrained = classmethod(_local(loader.from_pretrained.__func__))


def _local(original: Any) -> Any:
    def from_pretrained(cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
        short = str(name).rpartition("/")[2]
        if short not in TINY or Path(str(name)).exists():
            return original(cls, name, *args, **kwargs)
        kind, values = TINY[short]
        kwargs.pop("device_map", None)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", torch.float32))
        tiny = getattr(transformers, kind)(**{"pad_token_id": 0, **values, **kwargs})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = (cls.from_config if hasattr(cls, "from_config") else cls)(tiny)
        model.name_or_path = model.config._name_or_path = str(name)
        return model.to(dtype).eval()

    return from_pretrained
