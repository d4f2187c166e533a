"""One training step and one forward of adapted models, as ratios to the frozen model in the same run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach, merge
from metalora.adapters.checkpointing import checkpointing
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.targets import find_targets
from metalora.bench import memory
from metalora.bench.config import BenchConfig
from metalora.bench.tasks import encoder
from metalora.bench.timing import interleaved, ratio
from metalora.config import AdapterConfig, ConditionConfig
from metalora.cost import summarise
from metalora.methods.registry import get_method
from metalora.zoo import load_model

FLOOR, PEFT, PLAIN, DENSE, MERGED = "frozen model", "peft: ", ", plain", ", dense", ", merged"
PEERS = {"lora": "LoraConfig", "vera": "VeraConfig", "lokr": "LoKrConfig", "loha": "LoHaConfig"}


@dataclass
class Case:
    """A model that is timed: its inputs, what it learns, how long the adapter took to attach."""

    model: nn.Module
    inputs: dict[str, Tensor]
    learned: list[nn.Parameter]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.learned, lr=1e-4) if self.learned else None
        self.run: Callable[..., Any] = self.model
        self.around: Callable[[], AbstractContextManager] = nullcontext

    def step(self) -> None:
        """Forward, backward and, where there is something to learn, AdamW's step."""
        self.model.train()
        with self.around():
            _first(self.run(**self.inputs)).float().square().mean().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        _wait()

    def forward(self) -> None:
        """Inference."""
        self.model.eval()
        with torch.no_grad():
            self.run(**self.inputs)
        _wait()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def check(config: BenchConfig) -> None:
    """ValueError for names that are not known, before anything is built."""
    for peer in config.peers:
        if peer not in PEERS:
            raise ValueError(f"bench: unknown tuner of PEFT {peer!r}{nearest(peer, PEERS)}")
    for method in config.methods:
        get_method(method)


def names(config: BenchConfig) -> list[str]:
    """The cases of a configuration, the floor first."""
    ways = ("", *[PLAIN] * config.plain, *[DENSE] * config.dense)
    methods = [method + way for method in config.methods for way in ways]
    merged = [method + MERGED for method in config.methods[: int(config.merged)]]
    return [FLOOR, *(PEFT + peer for peer in config.peers), *methods, *merged]


def build(config: BenchConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    """The frozen model and a batch for it, without dropout so that all cases do the same work."""
    torch.manual_seed(0)
    if config.model == "minilm":
        model = encoder(config.layers)
    else:
        model = load_model(config.model, weights=not config.model.startswith("timm:"))  # weights cost no time
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, config.dtype)
    model.requires_grad_(False).to(device, dtype)
    if hasattr(model, "get_input_embeddings"):
        ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (config.batch, config.tokens))
        return model, {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    return model, {"x": torch.randn(config.batch, 3, config.size, config.size).to(device, dtype)}


def make(name: str, base: nn.Module, inputs: dict[str, Tensor], config: BenchConfig) -> Case:
    """A case on a copy of the frozen model."""
    model = copy.deepcopy(base)
    if name == FLOOR or name.endswith(MERGED):
        _need_gradients(model, config)
    start = time.perf_counter()
    if name.startswith(PEFT):
        paths = [target.path for target in find_targets(model, config.targets)]
        model = adapt_by_peft(model, name.removeprefix(PEFT), config.rank, paths).base_model.model
    elif name != FLOOR:
        inputs = _attach(model, name, inputs, config)
    seconds = time.perf_counter() - start
    if config.checkpointing:
        _checkpoint(model)
    case = Case(model, inputs, [p for p in model.parameters() if p.requires_grad], seconds)
    if config.compile:
        torch._dynamo.config.recompile_limit = 1000  # the cases have the code of the base in common
        case.run = torch.compile(model)
    if config.checkpointing and adapter_of(model) is not None:
        case.around = partial(checkpointing, model)
    return case


def _attach(model: nn.Module, name: str, inputs: dict[str, Tensor], config: BenchConfig) -> dict[str, Tensor]:
    """Attach the adapter of a case, and return the inputs, with a task for every example where it has tasks."""
    adapter = attach(model, adapter_config(name, config), example=inputs.get("x", inputs))
    adapter.fused = not name.endswith((PLAIN, DENSE))
    if name.endswith(DENSE):
        for layer in adapter.layers.values():
            layer.forward = partial(_by_delta, layer)
    if name.endswith(MERGED):
        merge(model, _one_condition(adapter, inputs))
        model.requires_grad_(False)
    elif adapter.task_keys:
        return {**inputs, "task_ids": torch.arange(config.batch) % config.tasks}
    return inputs


def _one_condition(adapter: Adapter, inputs: dict[str, Tensor]) -> Condition | None:
    """What an adapter whose factors differ by example is merged under: the mean condition, the first task."""
    if adapter.conditional:
        return adapter.condition(inputs.get("x", inputs)).mean()
    return adapter.task(0) if adapter.task_keys else None


def _by_delta(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """base(x) + x Delta W, with Delta W of this target formed for it: what a layer does without a cut."""
    base = layer.base
    delta = layer.delta(None).to(base.weight.dtype)
    if delta.ndim > base.weight.ndim:
        raise ValueError(f"bench: --dense takes one Delta W for all examples, {layer.target.path!r} has one for each")
    zero = {} if base.bias is None else {"bias": torch.zeros_like(base.bias)}
    return base(x) + functional_call(base, {"weight": delta, **zero}, x)


def adapter_config(name: str, config: BenchConfig) -> AdapterConfig:
    """The adapter of a case: the scale is one, whatever the rank."""
    method = name.partition(", ")[0]
    condition = config.condition if get_method(method).generated else ConditionConfig(scope="constant")
    return AdapterConfig(
        method, config.rank, targets=config.targets, clip_rank=True, condition=condition,
        tasks=config.tasks if "task" in get_method(method).network.modes else 1,
    )  # fmt: skip


def adapt_by_peft(model: nn.Module, peer: str, rank: int, names: list[str]) -> nn.Module:
    """PEFT's model around a model, with one of its tuners on the modules of these names."""
    import peft

    return peft.get_peft_model(model, getattr(peft, PEERS[peer])(r=rank, target_modules=names))


def _need_gradients(model: nn.Module, config: BenchConfig) -> None:
    """Let the frozen model go back as far as an adapter would: to what its targets give, and no further."""
    first = next(model.parameters())
    nothing = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or output.requires_grad:
            return None
        return output + nothing if torch.compiler.is_compiling() else output.requires_grad_()

    for target in find_targets(model, config.targets):
        model.get_submodule(target.path).register_forward_hook(hook)


def _checkpoint(model: nn.Module) -> None:
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
    else:
        raise ValueError(f"bench: {type(model).__name__} has no checkpointing of its own")


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def steps(config: BenchConfig) -> list[dict[str, Any]]:
    """Every case beside the frozen model: what `timed` tells, and the peak memory of a step."""
    return [{**row, "peak_mb": memory.peak(config, row["case"]) / 2**20} for row in timed(config)]


def timed(config: BenchConfig) -> list[dict[str, Any]]:
    """Every case beside the frozen model: a training step, a forward, numbers, file, time to attach."""
    check(config)
    base, inputs = build(config)
    cases = {name: make(name, base, inputs, config) for name in names(config)}
    trained = interleaved({name: case.step for name, case in cases.items()}, config.rounds)
    inferred = interleaved({name: case.forward for name, case in cases.items()}, config.rounds)
    rows = []
    for name, case in cases.items():
        step, forward = ratio(trained, name, FLOOR), ratio(inferred, name, FLOOR)
        own = name != FLOOR and not name.startswith(PEFT)
        rows.append({
            "case": name, "step": step.median, "step_low": step.low, "step_high": step.high,
            "step_seconds": step.seconds, "forward": forward.median, "forward_low": forward.low,
            "forward_high": forward.high, "forward_seconds": forward.seconds,
            "num_params": sum(p.numel() for p in case.learned), "attach_seconds": case.seconds,
            "file_bytes": summarise(base, adapter_config(name, config))["bytes"] if own else None,
        })  # fmt: skip
    return rows
