"""Which adapters a plain LoRA can repeat: what PEFT and servers of LoRA compute, and what they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.merge import check_untied
from metalora.adapters.own_forward import Dependence
from metalora.methods.records import Biased


@dataclass(frozen=True)
class Runtime:
    """A server of LoRA.

    Attributes:
        kinds: The kinds of layers whose LoRA it serves.
        max_rank: The largest rank, unless it is started with another limit.
    """

    kinds: tuple[str, ...]
    max_rank: int


RUNTIMES = {"vllm": Runtime(("linear", "embedding"), 16)}  # 16 is vLLM's own default of max_lora_rank


def linear_layers(adapter: Adapter, verb: str) -> dict[str, AdaptedLayer]:
    """Return the adapted layers by module path, all of which add a Delta W.

    Args:
        adapter: The adapter.
        verb: What they are for, the first word of errors.

    Raises:
        ValueError: The adapter is merged, biases of other layers are trained too, or a layer is not linear in its
            input.
    """
    if adapter.merged:
        raise ValueError(f"{verb}: the adapter is merged; unmerge it first")
    if adapter.outside_biases:
        first = next(iter(adapter.outside_biases))
        raise ValueError(f"{verb}: a LoRA has biases at its targets alone, and the bias of {first!r} is trained too")
    layers = {}
    for path, layer in adapter.layers.items():
        if not isinstance(layer, AdaptedLayer):
            raise ValueError(f"{verb}: target {path!r}: {type(layer).__name__} {layer.not_a_lora}")
        layers[path] = layer
    return layers


def exportable_layers(adapter: Adapter) -> dict[str, AdaptedLayer]:
    """Return the adapted layers by module path.

    Raises:
        ValueError: PEFT's LoRA cannot repeat the adapter: it is merged, a layer is not linear in its input, weights
            are tied, a layer has several names, or PEFT computes its LoRA in another way.
    """
    layers = linear_layers(adapter, "export")
    check_untied(adapter, "export")
    modules = adapter.model.named_modules(remove_duplicate=False)  # a module with two names comes twice
    name_counts = Counter(id(module) for _, module in modules)
    for path, layer in layers.items():
        if name_counts[id(layer)] > 1:
            raise ValueError(f"export: target {path!r} has several names in the model; PEFT would adapt one of them")
        if layer.bound.bias_slot is not None and (layer.bound.rescalers or adapter.targets[path].kind == "embedding"):
            raise ValueError(f"export: target {path!r} has a trained bias, and PEFT's LoRA there cannot have one")
        if adapter.method.has(Biased) and getattr(layer.base, "bias", None) is None:
            raise ValueError(f"export: {adapter.method.name} has biases, and target {path!r} none to add them to")
        assert isinstance(layer.base, nn.Module)
        # Such a layer could be written, and PEFT would then compute something else without an error.
        difference = _difference_in_peft(layer.base) or _difference_of_class(layer)
        if difference:
            raise ValueError(f"export: target {path!r} {difference}")
    return layers


def _difference_in_peft(base: nn.Module) -> str:
    """Return why PEFT's LoRA of a layer is not base + Delta W; empty if it is."""
    if isinstance(base, (nn.Conv1d, nn.Conv2d)):
        is_dilated = any(size > 1 and step > 1 for size, step in zip(base.kernel_size, base.dilation, strict=True))
        if is_dilated:
            return f"has dilation {base.dilation}, which PEFT's LoRA of a convolution leaves out"
        if base.padding_mode != "zeros":
            return f"has padding mode {base.padding_mode!r}, which PEFT's LoRA of a convolution leaves out"
    if isinstance(base, nn.Embedding):
        if getattr(base, "embed_scale", None) is not None:
            return "has embed_scale; some versions of PEFT multiply the LoRA by it, others do not"
    return ""


def _difference_of_class(layer: AdaptedLayer) -> str:
    """Return why a LoRA that is added to the output of the base's class is not the adapter; empty if it is."""
    if layer.dependence in (Dependence.PLAIN, Dependence.SAME_UPDATE):
        return ""
    return f"is a {type(layer.base).__name__}, whose forward PEFT's LoRA does not run with; merge it instead"


def check_runtime(
    adapter: Adapter,
    layers: Mapping[str, AdaptedLayer],
    runtime: str | None,
    max_lora_rank: int | None,
    max_rank: int | None,
) -> None:
    """Check that a server of LoRA serves every target.

    Args:
        adapter: The adapter.
        layers: Its layers by module path.
        runtime: Name of the server, one of `RUNTIMES`; None checks nothing.
        max_lora_rank: The limit with which the server is started; None: its default.
        max_rank: The rank to which the export truncates; None: it does not.

    Raises:
        ValueError: An unknown server, a limit without a server, a kind of layer or a bias that the server does not
            know, or a rank above its limit.
    """
    if runtime is None:
        if max_lora_rank is not None:
            raise ValueError("export: max_lora_rank is the limit of a runtime; name the runtime")
        return
    if runtime not in RUNTIMES:
        raise ValueError(f"export: unknown runtime {runtime!r}{nearest(runtime, RUNTIMES)}")
    if any(layer.bound.has_biases for layer in layers.values()):
        raise ValueError(f"export: {adapter.method.name} has biases here, and {runtime}'s LoRA has none")
    limit = RUNTIMES[runtime].max_rank if max_lora_rank is None else max_lora_rank
    for path, layer in layers.items():
        kind = adapter.targets[path].kind
        if kind not in RUNTIMES[runtime].kinds:
            raise ValueError(f"export: {runtime} has no LoRA for target {path!r}, a {kind}")
        rank = layer.form.rank if max_rank is None else min(max_rank, layer.form.rank)
        if rank > limit:
            raise ValueError(
                f"export: target {path!r} has rank {rank}, above the {limit} of {runtime}'s max_lora_rank: start "
                f"{runtime} with a larger one, or truncate with max_rank={limit}"
            )
