"""The work of `metalora convert`, `import` and `combine`: trained adapters and their base become one adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from metalora._util.files import check_new_folder
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.layers.base import AdaptedLayer
from metalora.cli.merging import load_named_base, name_in_transformers
from metalora.config import AdapterConfig
from metalora.fitting.combination import CombinationRule, How, Sign, check_arguments
from metalora.io.adapter_file import is_adapter_file, read, save
from metalora.io.lora.combine import combine, read_updates
from metalora.io.lora.convert import convert
from metalora.io.lora.export import export_lora
from metalora.io.lora.import_ import load_lora
from metalora.io.lora.peft_config import base_class_of
from metalora.io.lora.source import read_source
from metalora.zoo import load_model

Value = TypeVar("Value")


def convert_files(
    loras: Sequence[Path],
    config: AdapterConfig,
    out: Path,
    *,
    model: str,
    class_name: str | None = None,
    store: Literal["float32", "float16"] = "float32",
) -> dict[str, Any]:
    """Fit one adapter to trained LoRAs and write it.

    Args:
        loras: Folders or files, see `metalora.load_lora`; several of them become tasks.
        config: The adapter that is fitted.
        out: The adapter file.
        model: Name of the base of all LoRAs, as `metalora.zoo.load_model` takes it.
        class_name: The class of the base; None: the one that the LoRAs name.
        store: Data type of the numbers in the file.

    Returns:
        The relative errors (over all, by target, by LoRA), and parameters and bytes before and after.

    Raises:
        ValueError: What `metalora.io.lora.convert.convert` refuses; nothing is written.
    """
    base = load_common_base(loras, model, class_name)
    _, report = convert(base, loras, config)
    save(base, out, getattr(torch, store))  # the error that is reported is that of the unrounded numbers
    return {
        "adapter": str(out),
        "error": report.error,
        "targets": report.fit.by_target(),
        "loras": dict(zip(map(str, loras), report.fit.by_task(), strict=True)),
        "parameters_before": report.params_before,
        "parameters": report.params_after,
        "bytes_before": sum(read_source(path).file.stat().st_size for path in loras),
        "bytes": out.stat().st_size,
    }


def import_file(
    lora: Path,
    out: Path,
    *,
    model: str,
    class_name: str | None = None,
    network: str | None = None,
    subfolder: str = "",
    leave_out_modules: bool = False,
) -> dict[str, Any]:
    """Write a trained LoRA as an adapter file.

    Args:
        lora: A folder or a file; see `metalora.load_lora`.
        out: The adapter file.
        model: Name of the base, as `metalora.zoo.load_model` takes it.
        class_name: The class of the base; None: the one that the LoRA names.
        network: The network of the file to take.
        subfolder: The folder inside of `lora` that holds the LoRA.
        leave_out_modules: Whether to go without modules that were trained whole, such as a classifier.

    Returns:
        The rank of each target, the parameters and the bytes of the file.

    Raises:
        ValueError: What `metalora.io.lora.import_.load_lora` refuses; nothing is written.
    """
    base = load_common_base([lora / subfolder], model, class_name)
    adapter = load_lora(base, lora, network, subfolder, "leave_out" if leave_out_modules else "refuse")
    save(base, out)
    return {
        "adapter": str(out),
        "targets": {path: cast(AdaptedLayer, layer).form.rank for path, layer in adapter.layers.items()},
        "parameters": adapter.num_params(),
        "bytes": out.stat().st_size,
    }


def combine_files(
    sources: Sequence[Path],
    out: str,
    *,
    model: str,
    class_name: str | None = None,
    weights: Sequence[float],
    how: How,
    density: float | None,
    rank: int | None,
    sign: Sign,
    seed: int,
    tasks: Sequence[int | None] | None,
    conditions: Sequence[Path | None] | None,
    check_base: bool = True,
    allow_download: bool = False,
) -> dict[str, Any]:
    """Combine trained adapters and write the LoRA that comes out.

    Args:
        sources: Adapter files, folders in PEFT's format, or files of kohya or LyCORIS.
        out: The adapter file; if it ends in "/", a folder in PEFT's format.
        model: Name of the base of all of them, as `metalora.zoo.load_model` takes it.
        class_name: The class of the base; None: the one that the adapters name.
        weights: One for each source; see `metalora.io.lora.combine.combine`, as for the arguments that follow.
        how: The rule.
        density: What is kept of each update.
        rank: The largest rank.
        sign: How signs are elected.
        seed: Of what is dropped at random.
        tasks: One number for each source, None for a source without tasks.
        conditions: One condition file for each source, None for a source without generated factors.
        check_base: Whether to refuse a base with other weights than the adapters and conditions were made on.
        allow_download: Whether extractors that adapter files name may be downloaded.

    Returns:
        The relative errors of truncation and the ranks (over all, by target), and the bytes that were written.

    Raises:
        ValueError: Another number of tasks or conditions than of sources, and what
            `metalora.io.lora.combine.combine` refuses; nothing is written.
    """
    check_arguments(len(sources), weights, CombinationRule(how, density, sign, seed), rank)  # before a long loading
    tasks = _one_for_each(sources, tasks, "tasks")
    files = _one_for_each(sources, conditions, "conditions")
    if out.endswith("/"):
        check_new_folder(out)
    base = load_common_base(sources, model, class_name)
    updates = []
    for path, file, task in zip(sources, files, tasks, strict=True):
        condition = None if file is None else Condition.load(file, check_base=check_base)
        updates.append(read_updates(base, path, condition, task, check_base=check_base, allow_download=allow_download))
    adapter, report = combine(base, updates, weights, how, density, rank, sign, seed)
    if out.endswith("/"):
        [exported] = export_lora(adapter, out)
        size = exported.bytes
    else:
        save(base, out)
        size = Path(out).stat().st_size
    targets = {path: {"rank": report.ranks[path], "error": error} for path, error in report.errors.items()}
    return {"out": out, "error": report.error, "targets": targets, "parameters": adapter.num_params(), "bytes": size}


def _one_for_each(sources: Sequence[Path], values: Sequence[Value | None] | None, name: str) -> Sequence[Value | None]:
    """Return one value for each source, None for all if none are given."""
    if values is not None and len(values) != len(sources):
        raise ValueError(f"combine: {len(values)} {name} for {len(sources)} adapters; write None where there is none")
    return [None] * len(sources) if values is None else values


def load_common_base(sources: Sequence[Path], model: str, class_name: str | None = None) -> nn.Module:
    """Load the base in the class that trained adapters were made on.

    Args:
        sources: Adapter files, and folders or files of LoRAs. An adapter file says its class, a folder of PEFT its
            class or its task; other files say nothing.
        model: Name of the base, as `metalora.zoo.load_model` takes it.
        class_name: The class, whatever the adapters say.

    Raises:
        ValueError: The adapters name several classes, there is no such base, or a class is given for one that is no
            model of transformers.
    """
    named = {} if class_name is not None else {name: path for path in sources if (name := _class_of(path)) is not None}
    if len(named) > 1:
        raise ValueError(f"the adapters were made on several classes, {', '.join(sorted(named))}: give one by --class")
    chosen = next(iter(named), class_name)
    if class_name is not None and name_in_transformers(model) is None:
        raise ValueError(f"--class {class_name}: {model} is no hf: model, and only those have classes to choose from")
    if chosen is None:
        return load_model(model)
    base, _ = load_named_base(model, chosen)
    return base


def _class_of(path: Path) -> str | None:
    """Return the name of the class that an adapter was made on, or None if it does not say it."""
    if is_adapter_file(path):
        description, _ = read(path)
        return str(description["base"]["class"])
    return base_class_of(path)
