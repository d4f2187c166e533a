"""The bank: a module of the base model that owns the factors of all adapters, each once, whatever the depth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.checkpointing import explicit
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.targets import Target, kind_of, target_at
from metalora.integrations.peft.layers import TunerLayer

BANK = "tensor_bank"  # of the child of the base model; without PEFT's prefix, by which PEFT skips modules
BASE = "__base__"  # in PEFT's adapter_names: no adapter


class AdapterContainer(TunerLayer, nn.Module):
    """Owns `metalora.Adapter`s by name; made ready before, and cleared after every forward of the model.

    names  the adapter of each example, while a mixed batch runs
    """

    adapter_layer_names = ("metalora_adapters",)
    in_features = out_features = weight = bias = None  # PEFT asks every layer for them

    def __init__(self, model: nn.Module):
        nn.Module.__init__(self)
        self.metalora_adapters = nn.ModuleDict()
        # Known before any layer is replaced: whether a number counts layers is told by the classes of its siblings.
        self.targets: dict[str, Target | None] = {
            path: target_at(model, path) if kind_of(module) else None for path, module in model.named_modules()
        }
        self.names: Sequence[str] | None = None
        self.beams = 1
        self.given: tuple[Any, Any] = (None, None)  # condition and task ids, while a forward of the PeftModel runs
        self.asleep = False
        self._rows: dict[int, dict[str, Tensor]] = {}
        self._active_adapter = []
        self.handles = [
            model.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            model.register_forward_hook(self.after_forward, always_call=True),
        ]

    def forward(self, x: Any) -> Any:
        """The input itself: a base that is a Sequential calls all its children."""
        return x

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing: the adapted layers merge."""

    def unmerge(self) -> None:
        """Nothing: the adapted layers unmerge."""

    def leave(self, model: nn.Module) -> None:
        """Take the bank and its hooks out of a model."""
        for handle in (*self.handles, *(h for a in self.metalora_adapters.values() for h in a.hooks)):
            handle.remove()
        for module in model.modules():
            if isinstance(vars(module).get(CHECKPOINT), CarryingCheckpoint):
                setattr(module, CHECKPOINT, vars(module)[CHECKPOINT].checkpoint)
        delattr(model, BANK)

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's, and the hooks of the condition's source."""
        if adapter_name in self.metalora_adapters:
            for handle in self.metalora_adapters[adapter_name].hooks:
                handle.remove()
        super().delete_adapter(adapter_name)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        adapter = self.metalora_adapters[adapter_name] if adapter_name in self.metalora_adapters else None
        if adapter is not None and not any(p.is_meta for p in adapter.parameters()):
            adapter.to(device or next(iter(adapter.layers.values())).base.weight.device)

    # ---- while a forward runs --------------------------------------------------------------------------------------
    @property
    def resting(self) -> bool:
        """Whether the frozen base alone runs, such as for the features of a condition."""
        return self.asleep or any(not adapter.enabled for adapter in self.metalora_adapters.values())

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """Run the frozen base inside."""
        before, self.asleep = self.asleep, True
        try:
            yield
        finally:
            self.asleep = before

    def running(self) -> dict[str, Adapter]:
        """The adapters that take part in a forward."""
        names = self.active_adapters if self.names is None else [n for n in dict.fromkeys(self.names) if n != BASE]
        if self.disable_adapters:
            return {}
        every = {name: self.metalora_adapters[name] for name in names if name in self.metalora_adapters}
        return {name: adapter for name, adapter in every.items() if not adapter.merged}

    def rows(self, batch: int) -> dict[str, Tensor]:
        """Adapter name -> the rows of a layer's batch that are its; ValueError for a batch of another length."""
        if batch not in self._rows:
            names = self.names if len(self.names) == batch else [n for n in self.names for _ in range(self.beams)]
            if len(names) != batch:
                raise ValueError(
                    "Length of `adapter_names` should be the same as the number of inputs, but got "
                    f"{len(self.names)} and {batch} respectively."
                )
            every = dict.fromkeys(name for name in names if name != BASE)
            self._rows[batch] = {n: torch.tensor([k for k, one in enumerate(names) if one == n]) for n in every}
        return self._rows[batch]

    @contextlib.contextmanager
    def batch(self, names: Sequence[str] | None, condition: Any, task_ids: Any, beams: int) -> Iterator[None]:
        """Run every forward inside with these adapters by example, this condition and these tasks.

        What is complete is active at once: generate calls an encoder by itself.
        """
        self.names, self._rows, self.beams, self.given = names, {}, beams, (condition, task_ids)
        try:
            with contextlib.ExitStack() as stack:
                for name, adapter in self.running().items():
                    adapter.beams = beams
                    values = {} if (own := _own(condition, name, adapter)) is None else dict(own.values)
                    if task_ids is not None and adapter.task_keys:
                        values |= adapter.task(task_ids).values
                    if values and _keys(adapter) <= values.keys():
                        stack.enter_context(adapter.using(values))
                yield
        finally:
            self.names, self._rows, self.beams, self.given = None, {}, 1, (None, None)
            for adapter in self.metalora_adapters.values():
                adapter.beams = 1

    def before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook of the model: take the condition and the task ids, and make the adapters ready."""
        condition, ids = self.given
        if any(adapter.per_example for adapter in self.metalora_adapters.values()):
            condition = kwargs.pop("condition", condition)
        if any(adapter.task_keys for adapter in self.metalora_adapters.values()):
            ids = kwargs.pop("task_ids", ids)
        if not self.resting:
            for name, adapter in self.running().items():
                own = _own(condition, name, adapter)
                _check_tasks(name, adapter, own, ids)
                adapter.begin(own, ids if adapter.task_keys else None, args, kwargs)
            self._carry_conditions(module)
        return args, kwargs

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: no condition outlives its forward."""
        if not self.resting:
            for adapter in self.metalora_adapters.values():
                adapter.end(output)

    def _carry_conditions(self, model: nn.Module) -> None:
        """Where the model checkpoints activations, make the condition an explicit input of the checkpointed part."""
        if not (model.training and torch.is_grad_enabled() and any(a.per_example for a in self.running().values())):
            return
        for module in model.modules():
            own = vars(module).get(CHECKPOINT)
            if own is not None and not isinstance(own, CarryingCheckpoint):
                setattr(module, CHECKPOINT, CarryingCheckpoint(own, self))


CHECKPOINT = "_gradient_checkpointing_func"  # where transformers keeps it


class CarryingCheckpoint:
    """A checkpoint function that hands the active conditions to what it checkpoints as explicit inputs."""

    def __init__(self, checkpoint: Any, bank: AdapterContainer):
        self.checkpoint, self.bank = checkpoint, bank

    def __call__(self, function: Any, *args: Any, **options: Any) -> Any:
        for adapter in self.bank.running().values():
            function, args = explicit(function, args, adapter)
        return self.checkpoint(function, *args, **options)


def container_of(model: nn.Module) -> AdapterContainer | None:
    """The bank of a model, however it is wrapped; None if it has none."""
    return next((module for module in model.modules() if isinstance(module, AdapterContainer)), None)


def adapter_of(model: nn.Module, adapter_name: str | None = None) -> Adapter:
    """The `metalora.Adapter` of a name, or the active one: conditions, ΔW, export. ValueError: there is none."""
    bank = container_of(model)
    if bank is None:
        raise ValueError(f"{type(model).__name__} has no adapter of metalora.peft")
    names = bank.active_adapters if adapter_name is None else [adapter_name]
    if len(names) != 1 or names[0] not in bank.metalora_adapters:
        known = ", ".join(bank.metalora_adapters)
        raise ValueError(f"adapter {adapter_name!r}: expected the name of one (known: {known}; active: {names})")
    return bank.metalora_adapters[names[0]]


def _keys(adapter: Adapter) -> set[str]:
    """The stored factors that differ by example."""
    return {*adapter.task_keys, *(adapter.conditioner.shapes if adapter.conditional else ())}


def _own(condition: Condition | Mapping[str, Condition] | None, name: str, adapter: Adapter) -> Condition | None:
    """Of a condition, or of one for each adapter by name, what is this adapter's."""
    own = condition.get(name) if isinstance(condition, Mapping) else condition
    return own if own is not None and _keys(adapter) & own.values.keys() else None


def _check_tasks(name: str, adapter: Adapter, condition: Condition | None, ids: Any) -> None:
    given = condition or adapter.fixed or None
    known = {*(given.values if given is not None else ()), *(adapter.held or ())}
    if ids is None and not adapter.task_keys.keys() <= known:
        raise ValueError(
            f"adapter {name!r} ({adapter.method.name}) has {adapter.config.tasks} tasks: wrap the model once with "
            "metalora.peft.wrap(model) and call it with task_ids=..., a number or one for each example"
        )
