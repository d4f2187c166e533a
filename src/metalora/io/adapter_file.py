"""The adapter file: one safetensors file whose header holds the versioned JSON description."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.files import write_atomically
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach, detach, merge, unmerge
from metalora.adapters.conditioning.condition import Condition
from metalora.config import AdapterConfig, from_dict, to_dict

FORMAT, VERSION = "metalora-adapter", 1
ALSO = "also/"  # of the names of what was trained with an adapter


def fingerprint(model: nn.Module, paths: list[str]) -> str:
    """A hash of the base weights at the targets: shapes, and up to 4,096 evenly spaced numbers of each."""
    digest = hashlib.sha256()
    for path in paths:
        module = model.get_submodule(path)
        base = getattr(module, "base", module)
        weight = getattr(module, "original", None)
        weight = (base.weight if weight is None else weight).detach()
        flat = weight.flatten()
        sample = flat[:: max(1, flat.numel() // 4096)][:4096].to("cpu", torch.float32)
        digest.update(f"{path} {tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def _digest(description: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    described = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(adapter: Adapter, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    tensors = {f"factors/{key}": value for key, value in adapter.learned.items()}
    if adapter.conditioner is not None:
        tensors |= {f"conditioner/{key}": value for key, value in adapter.conditioner.state_dict().items()}
    return {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}


def _state(extra_module: nn.Module | None) -> dict[str, Tensor]:
    state = {} if extra_module is None else extra_module.state_dict()
    return {ALSO + name: value.detach().to("cpu").contiguous() for name, value in state.items()}


def frozen_digest(adapter: Adapter) -> str | None:
    """A hash of the factors that are made from the seed, which another version of torch might make otherwise."""
    frozen = {key: adapter.factors[key] for key, one in adapter.layout.params.items() if one.frozen}
    digest = hashlib.sha256()
    for key, value in frozen.items():
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32] if frozen else None


def _description(adapter: Adapter, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(adapter.config),
        "method": {"name": adapter.method.name, "factors": dict(adapter.method.factors)},
        "targets": {
            path: {"kind": one.target.kind, "sizes": {**one.sizes, **one.target.sizes}, "coords": one.coords}
            for path, one in adapter.layout.targets.items()
        },
        "feature_size": adapter.conditioner.feature_size if adapter.conditioner is not None else None,
        "num_params": adapter.num_params(),
        "frozen": frozen_digest(adapter),
        "base": {
            "class": type(adapter.model[0]).__name__,
            "fingerprint": fingerprint(adapter.model[0], list(adapter.targets)),
        },
    }


def round_as_saved(adapter: Adapter, dtype: torch.dtype) -> None:
    """Round every number to what a file in `dtype` would hold, so that what is scored is what is saved."""
    made = adapter.conditioner.buffers() if adapter.conditioner is not None else ()
    for tensor in (*adapter.parameters(), *made):  # frozen factors are not in the file
        tensor.data.copy_(tensor.data.to(dtype))


def save(
    model: nn.Module, path: str | Path, dtype: torch.dtype | None = None, *, extra_module: nn.Module | None = None
) -> None:
    """Write the model's adapter: exactly the declared parameters, each shared factor once.

    dtype  of the adapter's numbers in the file (None: as they are); float16 halves it
    extra_module  what was trained with it, such as a head: its state goes into the file as it is
    ValueError: a model without adapter, a number that overflows in dtype.
    """
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"save: {type(model).__name__} has no adapter")
    tensors = _tensors(adapter, dtype) | _state(extra_module)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"save: {name!r} has numbers that are not finite in {value.dtype}")
    description = _description(adapter, tensors)
    description["sha256"] = _digest(description, tensors)
    write_atomically(path, dump_tensors(tensors, {"metalora": json.dumps(description)}))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and tensors of an adapter file; ValueError if it is missing, damaged or of another version."""
    try:
        content = Path(path).read_bytes()
        tensors = load_tensors(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        description = json.loads(header["__metadata__"]["metalora"])
    except FileNotFoundError:
        raise ValueError(f"{path}: no such adapter file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a directory, expected an adapter file") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a whole adapter file (truncated or damaged: {error})") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: not a {FORMAT} file")
    if description.get("version") != VERSION:
        raise ValueError(f"{path}: version {description.get('version')!r} of the format, this library reads {VERSION}")
    if _digest(description, tensors) != description.get("sha256"):
        raise ValueError(f"{path}: does not match its checksum: the file was changed after it was written")
    return description, tensors


def load(
    model: nn.Module, path: str | Path, *, extractor: nn.Module | None = None, extra_module: nn.Module | None = None
) -> Adapter:
    """Attach the adapter of a file to the base that it was trained on; ValueError refuses any other, unchanged.

    extra_module  a module that takes the state that was saved with the adapter (a head), None: the adapter alone
    """
    description, tensors = read(path)
    beside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(ALSO)}
    if extra_module is not None:
        _check_also(extra_module, beside, path)
    if adapter_of(model) is not None:
        raise ValueError(f"{path}: {type(model).__name__} already has an adapter: detach it first")
    config = from_dict(AdapterConfig, description["config"], f"{path}: config")
    targets = description["targets"]
    modules = dict(model.named_modules())
    missing = [target for target in targets if target not in modules]
    if missing:
        raise ValueError(
            f"{path}: made for {description['base']['class']}; {type(model).__name__} has no {missing[0]!r}"
        )
    for target, entry in targets.items():
        weight = getattr(modules[target], "weight", None)
        if weight is None or weight.numel() != _numel(entry["sizes"]):
            raise ValueError(f"{path}: target {target!r} has another shape in this {type(model).__name__}")
    if fingerprint(model, list(targets)) != description["base"]["fingerprint"]:
        raise ValueError(
            f"{path}: the base weights are not those that the adapter was trained on (fingerprints differ)"
        )
    try:
        adapter = attach(model, config, extractor=extractor)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        _restore(adapter, description, tensors, path)
    except ValueError:
        detach(model)
        raise
    if extra_module is not None:
        extra_module.load_state_dict({name.removeprefix(ALSO): value for name, value in beside.items()})
    return adapter


def _check_also(extra_module: nn.Module, saved: dict[str, Tensor], path: str | Path) -> None:
    """ValueError if the state that was saved with an adapter is not that of a module."""
    own, kind = _state(extra_module), type(extra_module).__name__
    for name in sorted(set(own) ^ set(saved)):
        where = "not saved with the adapter" if name in own else f"saved with the adapter, and not in this {kind}"
        raise ValueError(f"{path}: {name.removeprefix(ALSO)!r} is {where}")
    for name, value in own.items():
        if saved[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name.removeprefix(ALSO)!r} has shape {tuple(saved[name].shape)}, that of this {kind} is "
                f"{tuple(value.shape)}"
            )


def _numel(sizes: dict[str, int]) -> int:
    return sizes["in"] * sizes["out"] * sizes.get("kh", 1) * sizes.get("kw", 1)


def _restore(adapter: Adapter, description: dict[str, Any], tensors: dict[str, Tensor], path: str | Path) -> None:
    if dict(adapter.method.factors) != description["method"]["factors"]:
        raise ValueError(f"{path}: its {adapter.method.name} is wired {description['method']['factors']}, not as here")
    if description.get("frozen") != frozen_digest(adapter):
        raise ValueError(f"{path}: its frozen factors, made from seed {adapter.config.seed}, come out otherwise here")
    expected = _tensors(adapter)
    for name in sorted(set(expected) ^ set(tensors)):
        raise ValueError(f"{path}: tensor {name!r} is {'missing' if name in expected else 'not expected'}")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"{path}: {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}")
    with torch.no_grad():
        for key, parameter in adapter.learned.items():
            parameter.copy_(tensors[f"factors/{key}"])
    if adapter.conditioner is not None:
        state = {k.removeprefix("conditioner/"): v for k, v in tensors.items() if k.startswith("conditioner/")}
        adapter.conditioner.load_state_dict(state)


def merged_state(model: nn.Module, condition: Condition | None = None) -> dict[str, Tensor]:
    """The state of the plain model with base + Delta W as its weights, on the CPU; the model itself ends unmerged."""
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"save_merged: {type(model).__name__} has no adapter")
    merge(model, condition)
    try:
        own = {id(value) for value in (*adapter.parameters(), *adapter.buffers())}
        return {
            name.replace(".base.", "."): value.detach().to("cpu").contiguous().clone()
            for name, value in model.state_dict(keep_vars=True).items()
            if id(value) not in own
        }
    finally:
        unmerge(model)


def save_merged(model: nn.Module, path: str | Path, condition: Condition | None = None) -> None:
    """Write the state of the plain model with base + Delta W as its weights; the model itself ends unmerged."""
    write_atomically(path, dump_tensors(merged_state(model, condition)))
