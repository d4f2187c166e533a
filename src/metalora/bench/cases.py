"""The cases of a bench: the frozen model, the same model with PEFT's tuners, and with the methods of this library."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach
from metalora.adapters.checkpointing import checkpointing
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.merge import merge
from metalora.adapters.targets import find_targets
from metalora.bench.config import BenchConfig
from metalora.bench.device import bench_device, synchronize
from metalora.bench.encoder import encoder
from metalora.config import AdapterConfig, ConditionConfig
from metalora.methods.registry import get_method
from metalora.zoo import architectures, build_architecture, load_model

# A case has the name of its method, and a suffix if it is run in another way. PEFT's tuners have a prefix.
FLOOR, PEFT = "frozen model", "peft: "
PLAIN, DENSE, MERGED, TRITON, GIVEN = ", plain", ", dense", ", merged", ", triton", ", features given"
PEERS = {"lora": "LoraConfig", "vera": "VeraConfig", "lokr": "LoKrConfig", "loha": "LoHaConfig"}

Inputs = dict[str, Tensor]


@dataclass
class Case:
    """A model that is timed.

    Attributes:
        model: The model, adapted or frozen.
        inputs: Keyword arguments of a forward.
        learned: The parameters that a step changes.
        attach_seconds: How long it took to attach the adapter.
        run: What a forward calls: the model, or the compiled model.
        around: Makes the context of a training step.
    """

    model: nn.Module
    inputs: Inputs
    learned: list[nn.Parameter]
    attach_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.learned, lr=1e-4) if self.learned else None
        self.run: Callable[..., Any] = self.model
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def step(self) -> None:
        """Run forward, backward and, if there is something to learn, a step of AdamW."""
        self.model.train()
        with self.around():
            loss = self.loss()
            torch.autograd.backward(loss)
        self.update()
        synchronize()  # a GPU computes after the call has returned: the clock must wait

    def loss(self) -> Tensor:
        """A forward that records the graph, and a loss of its output, a scalar."""
        # Every output gets a gradient, so that no part of the backward is skipped.
        return first_output(self.run(**self.inputs)).float().square().mean()

    def update(self) -> None:
        """A step of AdamW, after which there are no gradients."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def forward(self) -> None:
        """Run inference."""
        self.model.eval()
        with torch.no_grad():
            self.run(**self.inputs)
        synchronize()


def first_output(output: Any) -> Tensor:
    """The output tensor of a model, of any shape, or the first entry of an output with several."""
    return output if isinstance(output, Tensor) else cast(Tensor, output[0])


# ---- names ---------------------------------------------------------------------------------------------------------
def check_names(config: BenchConfig) -> None:
    """Check the names of methods and tuners, also of those with a rank of their own, before anything is built.

    Raises:
        ValueError: A name is not known.
    """
    for peer in config.peers:
        if peer not in PEERS:
            raise ValueError(f"bench: unknown tuner of PEFT {peer!r}{nearest(peer, PEERS)}")
    for method in config.methods:
        get_method(method)
    known = [*(PEFT + peer for peer in config.peers), *config.methods]
    for name in config.ranks:
        if name not in known:
            raise ValueError(f"bench: ranks names {name!r}, which is not timed{nearest(name, known)}")


def case_names(config: BenchConfig) -> list[str]:
    """The names of the cases, the frozen model first."""
    names = [FLOOR]
    names += [PEFT + peer for peer in config.peers]
    for method in config.methods:
        names.append(method)
        if config.plain:
            names.append(method + PLAIN)
        if config.dense:
            names.append(method + DENSE)
        if config.features_given and get_method(method).generated:
            names.append(method + GIVEN)
    if config.merged:
        names += [method + MERGED for method in config.methods[:1]]
    return names


# ---- models --------------------------------------------------------------------------------------------------------
def build_model(config: BenchConfig) -> tuple[nn.Module, Inputs]:
    """Build the frozen model and a batch for it, without dropout, so that all cases do the same work.

    Returns:
        The model, and its inputs: `input_ids` and `attention_mask` (batch, tokens), or `x` (batch, 3, size, size).
    """
    torch.manual_seed(0)
    device, dtype = bench_device(), getattr(torch, config.dtype)
    # Random weights take the same time as trained ones, so that nothing is downloaded if the sizes are known.
    if config.model == "minilm":
        model = encoder(config.layers)
    elif config.model in architectures():
        model = build_architecture(config.model, device=device)
    else:
        model = load_model(config.model, weights=not config.model.startswith("timm:"))
    freeze(model).to(device, dtype)
    embeddings = getattr(model, "get_input_embeddings", None)
    if embeddings is not None:
        ids = torch.randint(0, embeddings().num_embeddings, (config.batch, config.tokens)).to(device)
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    images = torch.randn(config.batch, 3, config.size, config.size)
    return model, {"x": images.to(device, dtype)}


def freeze(model: nn.Module) -> nn.Module:
    """Freeze a model and switch its dropout off, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.requires_grad_(False)


def build_case(name: str, base: nn.Module, inputs: Inputs, config: BenchConfig) -> Case:
    """Build a case on a copy of the frozen model.

    Args:
        name: One of `case_names`, or the name of a method with `TRITON`.
        base: The frozen model.
        inputs: Keyword arguments of its forward.
        config: The configuration of the bench.
    """
    model = copy.deepcopy(base)
    if name == FLOOR or name.endswith(MERGED):
        _require_gradients(model, config)
    start = time.perf_counter()
    if name.startswith(PEFT):
        paths = [target.path for target in find_targets(model, config.targets)]
        model = adapt_by_peft(model, name.removeprefix(PEFT), rank_of(name, config), paths)
    elif name != FLOOR:
        inputs = _attach(model, name, inputs, config)
    seconds = time.perf_counter() - start
    if config.checkpointing:
        _enable_checkpointing(model)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    case = Case(model, inputs, learned, seconds)
    if config.compile:
        torch._dynamo.config.recompile_limit = 1000  # all cases share the code of the base
        case.run = torch.compile(model, mode=config.compile)
    if name.endswith(GIVEN):
        case.run = _with_features_given(case.run, model, inputs)
    if config.checkpointing and adapter_of(model) is not None:
        case.around = partial(checkpointing, model)
    return case


# ---- adapters ------------------------------------------------------------------------------------------------------
def rank_of(name: str, config: BenchConfig) -> int:
    """The rank of a case: that of its method or tuner in `ranks`, otherwise `rank`."""
    return config.ranks.get(name.partition(", ")[0], config.rank)


def adapter_config(name: str, config: BenchConfig) -> AdapterConfig:
    """The adapter of a case; its scale is 1 at every rank."""
    method = get_method(name.partition(", ")[0])
    return AdapterConfig(
        method.name,
        rank_of(name, config),
        targets=config.targets,
        clip_rank=config.clip_rank,
        condition=config.condition if method.generated else ConditionConfig(scope="constant"),
        tasks=config.tasks if "task" in method.network.modes else 1,
    )


def adapt_by_peft(model: nn.Module, peer: str, rank: int, names: list[str]) -> nn.Module:
    """Put a tuner of PEFT on modules of a model, in place.

    Args:
        model: The model.
        peer: A key of `PEERS`.
        rank: The tuner's rank.
        names: Names or endings of names of the modules, as PEFT's `target_modules` takes them.

    Returns:
        The adapted model itself, without PEFT's wrapper around its forward.
    """
    import peft

    config = getattr(peft, PEERS[peer])(r=rank, target_modules=names)
    device = next(model.parameters()).device
    wrapper: Any = peft.get_peft_model(cast(Any, model), config)
    wrapper.to(device)  # VeRA's shared matrices stay on the CPU otherwise, and each forward copies them
    return cast(nn.Module, wrapper.base_model.model)


def adapt_by_many_loras(model: nn.Module, targets: list[str], rank: int, names: list[str]) -> nn.Module:
    """Put several LoRAs of PEFT, with random weights, on modules of a model, in place.

    Args:
        model: The model.
        targets: Names or endings of names of the modules, as PEFT's `target_modules` takes them.
        rank: The rank of each LoRA.
        names: The names of the LoRAs.

    Returns:
        PEFT's wrapper in eval mode, whose forward takes `adapter_names`, one for each row.
    """
    import peft

    config = peft.LoraConfig(r=rank, target_modules=targets, init_lora_weights=False)
    wrapper: Any = peft.get_peft_model(cast(Any, model), config, adapter_name=names[0])
    for name in names[1:]:
        wrapper.add_adapter(name, config)
    return cast(nn.Module, wrapper.eval())


def _attach(model: nn.Module, name: str, inputs: Inputs, config: BenchConfig) -> Inputs:
    """Attach the adapter of a case; return the inputs, with a task for each example if the adapter has tasks."""
    adapter = attach(model, adapter_config(name, config), example=inputs.get("x", inputs))
    if name.endswith((PLAIN, DENSE)):
        _use_plain_autograd(adapter)
    if name.endswith(TRITON):
        adapter.use_kernels("triton")
    if name.endswith(DENSE):
        for layer in adapter.layers.values():  # an attribute of the instance comes before the method of the class
            vars(layer)["forward"] = partial(_dense_forward, cast(AdaptedLayer, layer))
    if name.endswith(MERGED):
        merge(model, _one_condition(adapter, inputs))
        model.requires_grad_(False)
    elif adapter.task_keys:
        return {**inputs, "task_ids": torch.arange(config.batch) % config.tasks}
    return inputs


def _with_features_given(run: Callable[..., Any], model: nn.Module, inputs: Inputs) -> Callable[..., Any]:
    """Return a forward whose condition is made from features that are computed now, and so without a pass for them."""
    adapter = adapter_of(model)
    assert adapter is not None
    with torch.no_grad():
        features = adapter.features(inputs.get("x", inputs))
    return lambda **arguments: run(**arguments, condition=adapter.condition_from(features))


def _use_plain_autograd(adapter: Adapter) -> None:
    """Switch the fused products off."""
    adapter.fused = False


def _one_condition(adapter: Adapter, inputs: Inputs) -> Condition | None:
    """The condition under which an adapter is merged if it differs by example: the mean condition, the first task."""
    if adapter.conditional:
        return adapter.condition(inputs.get("x", inputs)).mean()
    return adapter.task(0) if adapter.task_keys else None


def _dense_forward(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """base(x) + x Delta W, with Delta W of this target formed in each forward: a layer without the low-rank form."""
    base: Any = layer.base
    delta = layer.delta(layer.owner[0].current().values).to(base.weight.dtype)
    if delta.ndim > base.weight.ndim:
        raise ValueError(f"bench: --dense takes one Delta W for all examples, {layer.target.path!r} has one for each")
    weights = {"weight": delta}
    if base.bias is not None:  # base(x) has added it already
        weights["bias"] = torch.zeros_like(base.bias)
    return cast(Tensor, base(x) + functional_call(base, weights, x))


def _require_gradients(model: nn.Module, config: BenchConfig) -> None:
    """Let the backward of the frozen model go as far as an adapter's: to the outputs of the targets, no further."""
    first = next(model.parameters())
    zero = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or output.requires_grad:
            return None
        # The compiler cannot trace requires_grad_ on an intermediate result.
        return output + zero if torch.compiler.is_compiling() else output.requires_grad_()

    for target in find_targets(model, config.targets):
        model.get_submodule(target.path).register_forward_hook(hook)


def _enable_checkpointing(model: nn.Module) -> None:
    """Switch on the model's own recomputation of its blocks in backward."""
    model_with_checkpointing: Any = model
    if hasattr(model, "gradient_checkpointing_enable"):
        options = {"use_reentrant": False}
        model_with_checkpointing.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    elif hasattr(model, "set_grad_checkpointing"):
        model_with_checkpointing.set_grad_checkpointing()
    else:
        raise ValueError(f"bench: {type(model).__name__} has no checkpointing of its own")
