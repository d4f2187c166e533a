"""The adapter file: one safetensors file whose header holds a versioned description as JSON.

Tensors are named "factors/KEY", "biases/PATH" (the changes of the base's biases), "conditioner/NAME" (the mapping net)
and "also/NAME" (the state of an extra module).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.files import write_atomically
from metalora._util.hub import local_file
from metalora._util.reading import read_regular
from metalora._util.shown import shown
from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.attach import adapter_of, attach
from metalora.adapters.conditioning.extractor import check_no_download
from metalora.adapters.expected_shapes import expected_shapes
from metalora.adapters.held_matrix import base_at
from metalora.adapters.layout import counted_stacks
from metalora.adapters.usable_targets import usable_targets
from metalora.config import STACKS_WITHOUT_FIELD, AdapterConfig, config_in_file, from_dict, missing_in_file
from metalora.io.base_samples import check_samples, sample_base, trained_with
from metalora.io.condition_file import adapter_digest, extractor_digest
from metalora.io.described_file import check_entries, check_finite, checksum, description_in, parse_described
from metalora.io.fingerprint import fingerprint, frozen_digest

ADAPTER_FILE = "adapter.safetensors"  # its name in folders of learners, and in repositories on the Hub
FORMAT = "metalora-adapter"
VERSION = 1
FACTORS = "factors/"
BIASES = "biases/"
CONDITIONER = "conditioner/"
EXTRA = "also/"  # the word is part of version 1 of the format
SCHEMA = {
    "config": {"condition?": dict},
    "method": {"name": str, "factors": {"*": str}},
    "targets": {"*": {"kind": str, "sizes": {"in": int, "out": int, "kh?": int, "kw?": int}}},
    "base": {"class": str, "fingerprint": (str, type(None)), "left_out?": [str]},
    "given?": [str],
}
STD = CONDITIONER + "std"
ANOTHER_BASE = "; check_base=False loads it all the same"


# ---- writing --------------------------------------------------------------------------------------------------------
def save(
    model: nn.Module, path: str | Path, dtype: torch.dtype | None = None, *, extra_module: nn.Module | None = None
) -> None:
    """Write the adapter of a model to a file: exactly the declared parameters, each shared factor once.

    Args:
        model: A model with an adapter.
        path: The file to write; an existing one is replaced, or stays as it is if the new one cannot be written.
        dtype: The dtype of the adapter's numbers in the file. None writes them as they are; float16 halves the file.
            The frozen experts of a `metalora.mixture` are written as they are.
        extra_module: A module that was trained with the adapter, such as a head. Its state goes into the same file,
            unrounded. If it is a part of the model, it is no part of the base that `load` asks for; neither are
            parameters that require a gradient.

    Raises:
        ValueError: The model has no adapter, a number is not finite in `dtype`, or the file could not be written.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/adapter", torch.float16)
        ...     description, tensors = read(f"{folder}/adapter")
        >>> sorted(tensors)
        ['factors/0.A', 'factors/0.B']
    """
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"save: {type(model).__name__} has no adapter")
    adapter.check_started()
    tensors = _adapter_tensors(adapter, dtype) | _extra_tensors(extra_module)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"save: {name!r} has numbers that are not finite in {value.dtype}")
    description = _description(adapter, trained_with(model, extra_module))
    # safetensors itself does not notice a changed bit.
    description["sha256"] = checksum(description, tensors)
    write_atomically(path, dump_tensors(tensors, {"metalora": json.dumps(description)}))


def round_as_saved(adapter: Adapter, dtype: torch.dtype) -> None:
    """Round every number to what a file in `dtype` would hold, so that the adapter that is scored is the saved one.

    Args:
        adapter: The adapter whose parameters and mapping net are rounded in place. Frozen factors that a seed
            makes stay as they are: they are not in the file.
        dtype: The dtype of the file.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> _ = adapter.factors["0.A"].data.fill_(0.1)
        >>> round_as_saved(adapter, torch.float16)
        >>> adapter.factors["0.A"][0, 0].item()
        0.0999755859375
    """
    buffers = adapter.conditioner.buffers() if adapter.conditioner is not None else ()
    for tensor in (*adapter.parameters(), *adapter.kept_frozen.values(), *buffers):
        tensor.data.copy_(tensor.data.to(dtype))


def _description(adapter: Adapter, left_out: Sequence[str]) -> dict[str, Any]:
    """Return what a file says of its adapter; `_check_base` and `restore` compare it when the file is loaded."""
    targets = {}
    for path, target_layout in adapter.layout.targets.items():
        target = target_layout.target
        # The weight's own sizes win: a folded or cut axis has another size in the network.
        sizes = {**target_layout.sizes, **target.sizes}
        targets[path] = {"kind": target.kind, "sizes": sizes, "coords": target_layout.coords}
    base = adapter.model
    stacks = len(counted_stacks(adapter.targets.values(), adapter.method))
    given = {"given": list(adapter.given)} if adapter.given else {}
    return given | {
        "format": FORMAT,
        "version": VERSION,
        "config": config_in_file(adapter.config, stacks),
        "method": {"name": adapter.method.name, "factors": dict(adapter.method.factors)},
        "targets": targets,
        "feature_size": adapter.conditioner.feature_size if adapter.conditioner is not None else None,
        "num_params": adapter.num_params(),
        "digest": adapter_digest(adapter),  # condition files have it; it cannot be computed from rounded numbers
        "frozen": frozen_digest(adapter),
        "base": {
            "class": type(base).__name__,
            "fingerprint": fingerprint(base, list(adapter.targets)),  # what earlier versions compare
            **sample_base(base, adapter.targets, left_out),
            "extractor": extractor_digest(adapter),
        },
    }


def _adapter_tensors(adapter: Adapter, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the saved factors, the biases and the mapping net's state by their names in the file, on the CPU."""
    factors: dict[str, Tensor] = {**adapter.learned, **adapter.kept_frozen}
    tensors = {FACTORS + key: value for key, value in factors.items()}
    tensors |= {BIASES + path: value for path, value in adapter.bias_changes.items()}
    if adapter.conditioner is not None:
        for name, value in adapter.conditioner.state_dict().items():
            tensors[CONDITIONER + name] = value
    return {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}


def _extra_tensors(extra_module: nn.Module | None) -> dict[str, Tensor]:
    """Return the state of a further module by its names in the file, on the CPU."""
    state = {} if extra_module is None else extra_module.state_dict()
    return {EXTRA + name: value.detach().to("cpu").contiguous() for name, value in state.items()}


# ---- reading --------------------------------------------------------------------------------------------------------
def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter file without any model.

    Args:
        path: A file that `save` wrote.

    Returns:
        The description (format, version, config, method, targets, base, num_params, sha256) and the tensors by name.

    Raises:
        ValueError: The file is missing, damaged, changed after it was written, of another version of the format, or
            not complete, or a number in it is not finite.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/adapter")
        ...     description, tensors = read(f"{folder}/adapter")
        >>> description["method"]["name"], description["num_params"], tuple(tensors["factors/0.A"].shape)
        ('lora', 24, (8, 2))
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such adapter file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a directory, expected an adapter file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), expected an adapter file") from None
    description, tensors = parse_described(path, content, FORMAT, VERSION, "adapter file")
    check_entries(description, SCHEMA, str(path))
    check_finite(tensors, path)
    if STD in tensors and not (tensors[STD] > 0).all():
        raise ValueError(f"{path}: {STD!r} has a standard deviation that is not positive, features are divided by it")
    return description, tensors


def is_adapter_file(path: str | Path) -> bool:
    """Return whether a path is an adapter file, by what its header says; it may still be damaged.

    Example:
        >>> is_adapter_file("no-such-file")
        False
    """
    return Path(path).is_file() and description_in(Path(path).read_bytes()).get("format") == FORMAT


def load(
    model: nn.Module,
    path: str | Path,
    *,
    extractor: nn.Module | None = None,
    extra_module: nn.Module | None = None,
    check_base: bool = True,
    allow_download: bool = False,
    revision: str | None = None,
) -> Adapter:
    """Attach the adapter of a file to the base model that it was trained on.

    Args:
        model: The base model, without an adapter.
        path: A file that `save` wrote; or the name of a repository on the Hub, OWNER/NAME, which has such a file under
            the name adapter.safetensors.
        extractor: The network that makes the features, for an adapter with `condition.source="extractor"`.
        extra_module: A module that takes the state that was saved with the adapter, such as a head. None loads the
            adapter alone.
        check_base: Whether to refuse a base, or an extractor, with other weights than the adapter was trained with.
            Another architecture is refused in any case.
        allow_download: Whether an extractor that the file names may be downloaded; without it `extractor` has to be
            given, unless the name stands for a bundled network or for weights in a file.
        revision: A branch, a tag or a commit of the repository; None: its main branch.

    Returns:
        The adapter, bit for bit as it was saved.

    Raises:
        ValueError: The repository or the file is not readable (see `read`), it was made for another base, the model
            already has an adapter, or `extra_module` is not the module that was saved. The model is unchanged.

    Example:
        >>> import copy, tempfile
        >>> base = nn.Sequential(nn.Linear(8, 4))
        >>> model = copy.deepcopy(base)
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/adapter")
        ...     loaded = load(base, f"{folder}/adapter")
        >>> torch.equal(loaded.factors["0.A"], adapter.factors["0.A"])
        True
    """
    path = local_file(path, ADAPTER_FILE, "an adapter of metalora", revision)
    description, tensors = read(path)
    # What can be checked without an adapter is checked first; an error after `attach` detaches the adapter again.
    extra_tensors = {name: tensors.pop(name) for name in list(tensors) if name.startswith(EXTRA)}
    if extra_module is not None:
        _check_extra(extra_module, extra_tensors, path)
    if adapter_of(model) is not None:
        raise ValueError(f"{path}: {type(model).__name__} already has an adapter: detach it first")
    values = {"stacks": STACKS_WITHOUT_FIELD, **description["config"]}
    config = from_dict(AdapterConfig, values, f"{path}: config")  # refuses unknown fields
    if extractor is None and not allow_download:
        check_no_download(config.condition, path)
    if missing := missing_in_file(description["config"]):
        raise ValueError(f"{path}: config has no {missing!r}")
    _check_base(model, description, path, check_base)
    _check_shapes(model, config, tensors, path)
    with unchanged_on_error(model, extractor):
        try:
            adapter = attach(model, config, extractor=extractor)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if check_base and adapter.extractor:
            check_samples(description["base"], {"extractor": extractor_digest(adapter)}, path, ANOTHER_BASE)
        restore(adapter, description, tensors, path)
    if extra_module is not None:
        extra_module.load_state_dict(_without_prefix(extra_tensors, EXTRA))
    return adapter


def _check_shapes(model: nn.Module, config: AdapterConfig, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError unless the tensors have the shapes that the configuration asks for, before any is made."""
    try:
        shapes = expected_shapes(usable_targets(model, config)[0], config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        in_file = CONDITIONER + rest if part == "conditioner" else FACTORS + rest.replace("/", ".")
        if in_file not in tensors:
            raise ValueError(f"{path}: tensor {shown(in_file)} is missing")
        if tensors[in_file].shape != shape:
            found = tuple(tensors[in_file].shape)
            raise ValueError(f"{path}: {shown(in_file)} has shape {found}, expected {shape} by the configuration")


def _check_base(model: nn.Module, description: Mapping[str, Any], path: str | Path, check_weights: bool) -> None:
    """Raise a ValueError unless the model has the targets of a description and, if asked, the weights of its base."""
    targets, base, class_name = description["targets"], description["base"], type(model).__name__
    bases = {target: base_at(model, target) for target in targets}
    for target, module in bases.items():
        if module is None:
            raise ValueError(f"{path}: made for {shown(base['class'])}; {class_name} has no {shown(target)}")
    for target, entry in targets.items():
        weight = getattr(bases[target], "weight", None)
        if weight is None or weight.numel() != _weight_numel(entry["sizes"]):
            raise ValueError(f"{path}: target {shown(target)} has another shape in this {class_name}")
    if check_weights:
        check_weights_of_base(model, description, path)


def check_weights_of_base(model: nn.Module, description: Mapping[str, Any], path: str | Path) -> None:
    """Raise a ValueError unless a model, with or without an adapter, has the weights that a description says."""
    targets, base = description["targets"], description["base"]
    # The older digest is compared, too: files of earlier versions have no other.
    older = fingerprint(model, list(targets))
    check_samples({"weights": base["fingerprint"]}, {"weights": older}, path, ANOTHER_BASE)
    check_samples(base, sample_base(model, targets, base.get("left_out", ())), path, ANOTHER_BASE)


def _check_extra(extra_module: nn.Module, saved: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError unless the saved state of a further module has the names and shapes of this one."""
    expected, class_name = _extra_tensors(extra_module), type(extra_module).__name__
    for name in sorted(set(expected) ^ set(saved)):
        problem = (
            "not saved with the adapter"
            if name in expected
            else f"saved with the adapter, but it is not in this {class_name}"
        )
        raise ValueError(f"{path}: {name.removeprefix(EXTRA)!r} is {problem}")
    for name, value in expected.items():
        if saved[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name.removeprefix(EXTRA)!r} has shape {tuple(saved[name].shape)}, that of this {class_name} "
                f"is {tuple(value.shape)}"
            )


def restore(adapter: Adapter, description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy the tensors of a file into an adapter; ValueError if they are not those of this adapter."""
    saved_factors, factors = description["method"]["factors"], dict(adapter.method.factors)
    if factors != saved_factors:
        # In another version a method of this name may have had other factors.
        name, wired = adapter.method.name, shown(saved_factors)
        raise ValueError(f"{path}: its {name} is wired {wired}, in this version it is {factors}")
    adapter.given = tuple(description.get("given", ()))
    if description.get("frozen") != frozen_digest(adapter):
        raise ValueError(
            f"{path}: its frozen factors are not those that seed {adapter.config.seed} makes in this version of torch"
        )
    expected = _adapter_tensors(adapter)
    for name in sorted(set(expected) ^ set(tensors)):
        raise ValueError(f"{path}: tensor {shown(name)} is {'missing' if name in expected else 'not expected'}")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"{path}: {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}")
    with torch.no_grad():  # `copy_` also converts: the file may be in float16, and the model on a GPU
        for key, value in (*adapter.learned.items(), *adapter.kept_frozen.items()):
            value.copy_(tensors[FACTORS + key])
        for path, change in adapter.bias_changes.items():
            change.copy_(tensors[BIASES + path])
    adapter.started = True
    adapter.digest_in_file = description.get("digest")  # files of earlier versions have none
    if adapter.conditioner is not None:
        adapter.conditioner.load_state_dict(_without_prefix(tensors, CONDITIONER))


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _weight_numel(sizes: Mapping[str, int]) -> int:
    """Return the number of entries of a weight, in · out · kh · kw."""
    return sizes["in"] * sizes["out"] * sizes.get("kh", 1) * sizes.get("kw", 1)
