"""Condition files: generated factors that say which adapter made them, on which base, under a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from metalora._util.digest import tensor_digest
from metalora._util.files import write_atomically
from metalora._util.reading import read_regular
from metalora._util.shown import cut
from metalora._util.user_warning import warn_user
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition, Origin
from metalora.config import to_dict
from metalora.io.base_samples import base_tensors, check_samples, sample_base, trained_with
from metalora.io.described_file import check_entries, checksum, description_in, parse_described
from metalora.io.fingerprint import DIGITS, is_here, sampled_digest

FORMAT, VERSION = "metalora-condition", 2
UNSIGNED_KIND, UNSIGNED_VERSION = "condition", 1  # the format before: tensors only
VALUES = "values/"
ORIGIN = {"adapter": str, "base": {"left_out": [str]}}
REMEDY = "; Condition.load(..., check_base=False) takes it all the same"


# ---- whose it is -----------------------------------------------------------------------------------------------------
def adapter_digest(adapter: Adapter) -> str | None:
    """Hash all on which the conditions of an adapter depend, but for its base: wiring, factors and mapping net.

    Args:
        adapter: The adapter; its numbers are hashed in float32, on whatever device they are.

    Returns:
        32 hexadecimal digits; None if a number is not here, since the adapter is sharded or on the meta device.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, attach
        >>> adapter = attach(nn.Sequential(nn.Linear(8, 4)), AdapterConfig("lora", rank=2, targets="0"))
        >>> before = adapter_digest(adapter)
        >>> _ = nn.init.ones_(adapter.factors["0.B"])
        >>> adapter_digest(adapter) == before
        False
    """
    tensors: dict[str, Tensor] = dict(adapter.factors)
    tensors |= {f"bias of {path}": change for path, change in adapter.bias_changes.items()}
    if adapter.conditioner is not None:
        tensors |= {f"mapping net {name}": value for name, value in adapter.conditioner.state_dict().items()}
    if not all(is_here(tensor) for tensor in tensors.values()):
        return None
    labelled = (
        (f"{name} {tuple(tensors[name].shape)}", tensors[name].detach().to("cpu", torch.float32))
        for name in sorted(tensors)
    )
    wiring = {
        "method": adapter.method.name,
        "factors": dict(adapter.method.factors),
        "condition": to_dict(adapter.config.condition),
        "coords": {path: target_layout.coords for path, target_layout in adapter.layout.targets.items()},
    }
    return tensor_digest(labelled, prefix=json.dumps(wiring, sort_keys=True))[:DIGITS]


def origin_of(condition: Condition) -> dict[str, Any] | None:
    """Return what a file says of the adapter of a condition, now; None if nothing can be said."""
    if condition.origin is not None:
        record: dict[str, Any] = json.loads(condition.origin.record)
        return record
    adapter = None if condition.maker is None else condition.maker.adapter()
    digest = None if adapter is None else adapter_digest(adapter)
    if adapter is None or digest is None:
        return None
    base = sample_base(adapter.model, adapter.targets, trained_with(adapter.model))
    return {"adapter": digest, "base": base | {"extractor": extractor_digest(adapter)}}


def check_origin(adapter: Adapter, origin: Origin) -> None:
    """Raise a ValueError unless a condition's file was written for this adapter, with its numbers, on its base.

    The adapter remembers an origin that it has accepted, also if it is trained further.
    """
    if origin.record in adapter.accepted_origins:
        return
    saved = json.loads(origin.record)
    if saved["adapter"] not in (adapter.digest_in_file, adapter_digest(adapter)):
        raise ValueError(
            f"{origin.file}: the condition of another adapter, or of this one at another time of its training "
            f"(digest {cut(str(saved['adapter']))}, this {adapter.method.name} has {adapter_digest(adapter)}){REMEDY}"
        )
    here = sample_base(adapter.model, adapter.targets, saved["base"]["left_out"])
    check_samples(saved["base"], here | {"extractor": extractor_digest(adapter)}, origin.file, REMEDY)
    adapter.accepted_origins.add(origin.record)


def extractor_digest(adapter: Adapter) -> str | None:
    """Return the digest of the network that makes an adapter's features; None if the base makes them."""
    return sampled_digest(base_tensors(adapter.extractor[0])) if adapter.extractor else None


# ---- files -----------------------------------------------------------------------------------------------------------
def save_condition(condition: Condition, path: str | Path) -> None:
    """Write a condition; see `Condition.save`."""
    tensors = {VALUES + key: value for key, value in condition.values.items()}
    tensors |= {"features": condition.features, "penalty": condition.penalty}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _check(tensors, path)
    origin = origin_of(condition)
    description = {"format": FORMAT, "version": VERSION, "origin": origin}
    description["sha256"] = checksum(description, tensors)
    write_atomically(path, dump_tensors(tensors, {"metalora": json.dumps(description)}))


def load_condition(path: str | Path, check_base: bool) -> Condition:
    """Read a condition; see `Condition.load`."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such condition file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), expected a condition file") from None
    if is_unsigned(description_in(content)):
        tensors, origin = _read_unsigned(path, content), None
    else:
        description, tensors = parse_described(path, content, FORMAT, VERSION, "condition file")
        origin = description.get("origin")
        if origin is not None:
            check_entries(description, {"origin": ORIGIN}, str(path))
    _check(tensors, path)
    if origin is None and check_base:
        warn_user(
            f"{path}: does not say which adapter made the condition, so that another adapter cannot be refused; make "
            "it again with adapter.condition(...), or pass check_base=False"
        )
    values = {name.removeprefix(VALUES): value for name, value in tensors.items() if name.startswith(VALUES)}
    signed = check_base and origin is not None
    return Condition(
        values,
        tensors["features"],
        tensors["penalty"],
        origin=Origin(json.dumps(origin, sort_keys=True), str(path)) if signed else None,
    )


def is_condition(description: Mapping[str, Any]) -> bool:
    """Return whether the description in a file is that of a condition, of this version or an earlier one.

    Example:
        >>> is_condition({"kind": "condition", "version": 1}), is_condition({"format": "metalora-adapter"})
        (True, False)
    """
    return description.get("format") == FORMAT or is_unsigned(description)


def is_unsigned(description: Mapping[str, Any]) -> bool:
    """Return whether a description is that of a condition file before version 2, which names no adapter."""
    return description.get("kind") == UNSIGNED_KIND


def _read_unsigned(path: str | Path, content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of version 1, which has no checksum."""
    version = description_in(content).get("version")
    if version != UNSIGNED_VERSION:
        raise ValueError(f"{path}: version {version!r} of the format, this library reads {UNSIGNED_VERSION}, {VERSION}")
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete condition file (truncated or damaged: {error})") from None
    return tensors


def _check(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError unless tensors by their names in a file are those of a condition, with finite numbers."""
    values = [name for name in tensors if name.startswith(VALUES)]
    for name in ("features", "penalty"):
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name!r} is missing, expected those of a condition")
    if unknown := sorted(set(tensors) - {*values, "features", "penalty"}):
        raise ValueError(f"{path}: tensor {unknown[0]!r} is not expected in a condition")
    if not values:
        raise ValueError(f"{path}: no value of a factor, expected tensors {VALUES}KEY")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(
                f"{path}: {name!r} has numbers that are not finite, expected finite ones in {tensor.dtype}"
            )
    if tensors["features"].ndim != 2 or tensors["penalty"].ndim != 0:
        shapes = {name: tuple(tensors[name].shape) for name in ("features", "penalty")}
        raise ValueError(f"{path}: shapes {shapes}, expected features (n, d) and a penalty ()")
    examples = len(tensors["features"])
    for name in values:
        if tensors[name].ndim == 0 or len(tensors[name]) != examples:
            shape = tuple(tensors[name].shape)
            raise ValueError(f"{path}: {name!r} has shape {shape}, expected ({examples}, ...): one for each example")
