"""The container: a module of the base model that owns the factors of all adapters, each stored once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora._util.sending import sent
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.checkpointing import explicit
from metalora.adapters.conditioning.check import check_condition
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.generation import sequences_per_example
from metalora.adapters.generation import generating, guard_generate, unguard_generate
from metalora.adapters.held_matrix import paths_in_order
from metalora.adapters.host import (
    argument_names,
    begin_forward,
    end_forward,
    enter_forward,
    guard_forward,
    has_entered,
    unguard_forward,
)
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.substitution import restore_parameters
from metalora.adapters.targets import Target, kind_of, matrix_targets, targets_at
from metalora.integrations.peft.calls import TASK_IDS_KEYWORD, Call, Calls, Conditions, TaskIds
from metalora.integrations.peft.continuous import guard_continuous_batching, unguard_continuous_batching
from metalora.integrations.peft.peft_api import BaseTunerLayer

CONTAINER_NAME = "tensor_bank"
"""Name of the container in the base model. It lacks PEFT's prefix, because PEFT skips modules that have it. Saved
folders contain this name, so it must stay."""
BASE_NAME = "__base__"
"""What PEFT's `adapter_names` calls an example without adapter."""
CHECKPOINT_ATTRIBUTE = "_gradient_checkpointing_func"
"""Where transformers keeps the function with which a module checkpoints activations."""


class TunerLayer(BaseTunerLayer):
    """The base class by which PEFT recognises this tuner's modules: the adapted layers and the container."""


class AdapterContainer(TunerLayer, nn.Module):
    """Owns `metalora.Adapter`s by name, prepares them before every forward of the model and clears them after it.

    Args:
        model: The base model, before any of its layers is replaced.

    Attributes:
        targets: Path of a module of the model -> its target, None for a module that cannot be adapted.
        matrices: Path of a parameter that a module reads itself -> its targets, one for each matrix.
        paths: Paths of all modules and matrices, in the order of the model.
        calls: The running call of the PeftModel, for each thread and asyncio task its own.
    """

    adapter_layer_names = ("metalora_adapters",)
    # PEFT reads these attributes of every tuner layer.
    in_features = out_features = weight = bias = None

    def __init__(self, model: nn.Module):
        nn.Module.__init__(self)
        self.metalora_adapters = nn.ModuleDict()
        # The targets are found now, because replaced layers would change them: a number in a path counts layers only
        # if all its siblings are of one class.
        self.targets: dict[str, Target | None] = {path: None for path, _ in model.named_modules()}
        adaptable = [path for path, module in model.named_modules() if kind_of(module)]
        self.targets |= {target.path: target for target in targets_at(model, adaptable)}
        self.matrices = matrix_targets(model)
        self.paths = paths_in_order(model)
        self.calls = Calls()
        self._active_adapter: list[str] = []
        self._model = (model,)  # a tuple: the model registers the container, not the other way round
        self.own_names = argument_names(model)
        self.handles = guard_forward(model, self)
        guard_generate(model, self)
        guard_continuous_batching(model, self)

    def adapters_by_name(self) -> dict[str, Adapter]:
        """Adapter name -> adapter, now; a deleted adapter stays in a dictionary that was returned before."""
        return {name: cast(Adapter, adapter) for name, adapter in self.metalora_adapters.items()}

    def forward(self, x: Any) -> Any:
        """Return the input: an `nn.Sequential` base calls all its children, and this is one of them."""
        return x

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Do nothing: the adapted layers merge themselves, and PEFT calls this method of every tuner layer."""

    def unmerge(self) -> None:
        """Do nothing: the adapted layers unmerge themselves, and PEFT calls this method of every tuner layer."""

    def remove_from(self, model: nn.Module) -> None:
        """Remove the container, its hooks and the hooks of its adapters from a model."""
        self.remove_hooks()
        for adapter in self.adapters_by_name().values():
            _remove_adapter_hooks(adapter)
        for module in model.modules():
            checkpoint = vars(module).get(CHECKPOINT_ATTRIBUTE)
            if isinstance(checkpoint, ConditionCheckpoint):
                setattr(module, CHECKPOINT_ATTRIBUTE, checkpoint.checkpoint)
        restore_parameters(model)
        delattr(model, CONTAINER_NAME)

    def remove_hooks(self) -> None:
        """Give the model its own forward back."""
        for handle in self.handles:
            handle.remove()
        unguard_forward(self._model[0])
        unguard_generate(self._model[0])
        unguard_continuous_batching(self._model[0])

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and the hooks with which it reads the features of its condition."""
        adapter = self.adapters_by_name().get(adapter_name)
        if adapter is not None:
            _remove_adapter_hooks(adapter)
        super().delete_adapter(adapter_name)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        adapter = self.adapters_by_name().get(adapter_name)
        if adapter is None or any(parameter.is_meta for parameter in adapter.parameters()):
            return
        adapter.to(device or first_base_weight(adapter).device)

    # ---- while a forward runs --------------------------------------------------------------------------------------
    @property
    def is_base_only(self) -> bool:
        """True while the frozen base runs alone, for example for the features of a condition."""
        adapters = self.metalora_adapters.values()
        return self.call.base_only or any(not cast(Adapter, adapter).current().enabled for adapter in adapters)

    @property
    def call(self) -> Call:
        """The call of the PeftModel that runs in this thread and asyncio task."""
        return self.calls.running.get()

    def base_only(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the frozen base runs alone."""
        return self.calls.entered(replace(self.call, base_only=True))

    def running_adapters(self) -> dict[str, Adapter]:
        """Adapter name -> adapter, for the adapters that take part in a forward."""
        if self.disable_adapters:
            return {}
        called = self.call.adapter_names
        names = self.active_adapters if called is None else dict.fromkeys(called)
        adapters = self.adapters_by_name()
        # BASE_NAME is not the name of an adapter, so it is left out here.
        return {name: adapters[name] for name in names if name in adapters and not adapters[name].merged}

    def rows_by_adapter(self, batch_size: int, device: torch.device) -> dict[str, Tensor]:
        """The rows of a mixed batch that belong to each adapter.

        Args:
            batch_size: Rows of the layer's input: the examples, or examples times beams.
            device: Where the layer computes.

        Returns:
            Adapter name -> the indices of its rows, `(rows,)`; rows without adapter are in none of them.

        Raises:
            ValueError: `adapter_names` does not fit the batch size.
        """
        call = self.call
        if (batch_size, device) not in call.rows:
            names = call.names_of_rows(batch_size)
            # Once for each batch size of a call: an encoder and a decoder have two.
            call.rows[batch_size, device] = {
                name: sent(torch.tensor([row for row, row_name in enumerate(names) if row_name == name]), device)
                for name in dict.fromkeys(names)
                if name != BASE_NAME
            }
        return call.rows[batch_size, device]

    @contextlib.contextmanager
    def call_arguments(
        self,
        adapter_names: Sequence[str] | None,
        condition: Conditions | None,
        task_ids: TaskIds | None,
        beams: int,
    ) -> Iterator[None]:
        """Within this context every forward of the model uses the arguments of one call of the PeftModel.

        A condition that is complete is active at once, because `generate` calls an encoder without the model's hooks.

        Args:
            adapter_names: The adapter of each example; None for the active adapters.
            condition: The condition, or a condition per adapter name.
            task_ids: The task of each example, or of all.
            beams: Sequences per example.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.calls.entered(Call(adapter_names, condition, task_ids, beams)))
            for name, adapter in self.running_adapters().items():
                values = _call_values(name, adapter, condition, task_ids)
                complete = values and _per_example_keys(adapter) <= values.keys()
                stack.enter_context(adapter.blocks.entered(values=values if complete else None, beams=beams))
            yield

    def enter_forward(self, caller: FrameType | None) -> None:
        """Enter a forward with all adapters, which `caller` will end."""
        for adapter in self.adapters_by_name().values():
            enter_forward(adapter, caller)

    def has_entered(self, caller: FrameType | None) -> bool:
        """Return True if the innermost forward is one that `caller` has entered."""
        return any(has_entered(adapter, caller) for adapter in self.adapters_by_name().values())

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the condition, the task ids and the prompt mask out of a model's arguments, and prepare the adapters."""
        condition, task_ids = self._take_arguments(kwargs)
        inputs = dict(kwargs)
        if any(adapter.reads_prompt for adapter in self.adapters_by_name().values()):
            kwargs.pop("prompt_mask", None)
        if self.is_base_only:
            self._check_base_can_run(condition, task_ids)
            return args, kwargs
        running = self.running_adapters()
        self._check_used(running, condition, task_ids)
        for name, adapter in running.items():
            own_condition = _condition_of(condition, name, adapter)
            _check_tasks(name, adapter, own_condition, task_ids)
            begin_forward(adapter, own_condition, task_ids if adapter.task_keys else None, args, inputs)
        self._pass_conditions_to_checkpoints(module)
        return args, kwargs

    @contextlib.contextmanager
    def generating(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Run a call of `generate` inside, every running adapter under its condition and its tasks."""
        own_arguments = dict(kwargs)
        condition, task_ids = self._take_arguments(own_arguments)
        running = {} if self.is_base_only else self.running_adapters()
        self._check_used(running, condition, task_ids)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.calls.entered(replace(self.call, beams=sequences_per_example(module, kwargs))))
            for name, adapter in running.items():
                if adapter.per_example:
                    own_condition = _condition_of(condition, name, adapter)
                    _check_tasks(name, adapter, own_condition, task_ids)
                    own_tasks = task_ids if adapter.task_keys else None
                    stack.enter_context(generating(adapter, own_condition, own_tasks, args, own_arguments))
            yield own_arguments

    def _take_arguments(self, kwargs: dict[str, Any]) -> tuple[Conditions | None, TaskIds | None]:
        """Take the condition and the task ids out of the arguments; by default, those of the PeftModel's call."""
        adapters = self.adapters_by_name().values()
        condition, task_ids = self.call.condition, self.call.task_ids
        if "condition" not in self.own_names or any(adapter.per_example for adapter in adapters):
            condition = kwargs.pop("condition", condition)
        if "task_ids" not in self.own_names or any(adapter.task_keys for adapter in adapters):
            task_ids = kwargs.pop("task_ids", task_ids)
        return condition, kwargs.pop(TASK_IDS_KEYWORD, task_ids)

    def _check_used(
        self, running: Mapping[str, Adapter], condition: Conditions | None, task_ids: TaskIds | None
    ) -> None:
        """Raise a ValueError if no running adapter takes a condition, or the task ids, that a call has."""
        if isinstance(condition, Mapping):
            for name in condition:
                if name not in self.metalora_adapters:
                    raise ValueError(f"condition: no adapter is named {name!r}{nearest(name, self.metalora_adapters)}")
        frozen = self.disable_adapters or self.is_base_only  # task ids belong to a batch, as labels do
        takers = {
            "condition": condition is None
            or any(_condition_of(condition, name, adapter) is not None for name, adapter in running.items()),
            "task_ids": task_ids is None or frozen or any(adapter.task_keys for adapter in running.values()),
        }
        unused = [name for name, used in takers.items() if not used]
        if unused:
            names = ", ".join(running) or "none, since they are disabled or merged"
            raise ValueError(
                f"{unused[0]}=... has no effect, since no adapter that runs takes it (running: {names}): leave it out, "
                "or activate its adapter"
            )

    def _check_base_can_run(self, condition: Conditions | None, task_ids: TaskIds | None) -> None:
        """Raise a ValueError if the base is not frozen since an adapter is merged, or a condition would be ignored."""
        if self.call.base_only:  # a new adapter measures how many features there are, not what they are
            return
        if any(not adapter.blocks.active.get().enabled for adapter in self.adapters_by_name().values()):
            self._check_used({}, condition, task_ids)
        merged = {name for module in self._model[0].modules() for name in getattr(module, "merged_adapters", ())}
        if merged:
            raise ValueError(
                f"the adapters {', '.join(sorted(merged))} are merged, so the frozen network cannot run: unmerge them "
                "first with unmerge_adapter()"
            )

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: clear the adapters after a forward of the model: no condition outlives it."""
        # All of them and not the running ones: the active adapters may have changed since.
        for adapter in self.adapters_by_name().values():
            end_forward(adapter, output)

    def _pass_conditions_to_checkpoints(self, model: nn.Module) -> None:
        """If the model checkpoints activations, make the condition an explicit input of every checkpointed part."""
        if not (model.training and torch.is_grad_enabled()):
            return
        if not any(adapter.per_example for adapter in self.running_adapters().values()):
            return
        # At each forward, since a model may switch its checkpointing on at any time.
        for module in model.modules():
            checkpoint = vars(module).get(CHECKPOINT_ATTRIBUTE)
            if checkpoint is not None and not isinstance(checkpoint, ConditionCheckpoint):
                setattr(module, CHECKPOINT_ATTRIBUTE, ConditionCheckpoint(checkpoint, self))


class ConditionCheckpoint:
    """A checkpoint function that passes the active conditions to the checkpointed function as explicit inputs.

    Args:
        checkpoint: The function of transformers that it replaces.
        container: The container whose running adapters have the conditions.
    """

    def __init__(self, checkpoint: Callable[..., Any], container: AdapterContainer):
        self.checkpoint = checkpoint
        self.container = container

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        for adapter in self.container.running_adapters().values():  # one adapter's values in front of the other's
            function, args = explicit(function, args, adapter)
        return self.checkpoint(function, *args, **options)


def container_of(model: nn.Module) -> AdapterContainer | None:
    """Return the container of a model, however the model is wrapped; None if it has none.

    Example:
        >>> container_of(nn.Linear(4, 2)) is None
        True
    """
    for module in model.modules():
        if isinstance(module, AdapterContainer):
            return module
    return None


def required_container(model: nn.Module) -> AdapterContainer:
    """Return the container of a model.

    Raises:
        ValueError: The model has no adapter of this library.
    """
    container = container_of(model)
    if container is None:
        raise ValueError(f"{type(model).__name__} has no adapter of metalora.peft")
    return container


def adapter_of(model: nn.Module, adapter_name: str | None = None) -> Adapter:
    """Return the `metalora.Adapter` of a PeftModel, which makes conditions, Delta W and exports.

    Args:
        model: A PeftModel or its base model.
        adapter_name: Name of the adapter; None for the active one.

    Returns:
        The adapter.

    Raises:
        ValueError: The model has no adapter of this library or none of that name, or several adapters are active.

    Example:
        >>> import peft, torch, metalora.peft
        >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> model = peft.get_peft_model(base, metalora.peft.LoTRConfig(r=2, target_modules=["0"]))
        >>> metalora.peft.adapter_of(model).delta("0").shape
        torch.Size([4, 6])
    """
    container = required_container(model)
    names = container.active_adapters if adapter_name is None else [adapter_name]
    adapters = container.adapters_by_name()
    if len(names) != 1 or names[0] not in adapters:
        raise ValueError(
            f"adapter {adapter_name!r}: expected the name of one (known: {', '.join(adapters)}; active: {names})"
        )
    return adapters[names[0]]


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a base layer.

    `nn.Module` declares only that an attribute is a tensor or a module; every layer that can be adapted has a weight.
    """
    return cast(nn.Parameter, layer.weight)


def first_base_weight(adapter: Adapter) -> nn.Parameter:
    """Return the weight of the first layer that an adapter adapts, which tells its device and dtype."""
    first_layer = next(iter(layers_of(adapter).values()))
    return weight_of(first_layer.base)


def layers_of(adapter: Adapter) -> dict[str, AdaptedLayer]:
    """Path of a target -> the adapter's layer there, with its type."""
    return cast(dict[str, AdaptedLayer], adapter.layers)


def _remove_adapter_hooks(adapter: Adapter) -> None:
    for handle in adapter.hooks:
        handle.remove()


def _per_example_keys(adapter: Adapter) -> set[str]:
    """The keys of the stored factors that differ by example."""
    generated_keys = () if adapter.conditioner is None else adapter.conditioner.shapes
    return {*adapter.task_keys, *generated_keys}


def _condition_of(condition: Conditions | None, name: str, adapter: Adapter) -> Condition | None:
    """The condition of one adapter; None if none was given, or if it has no value for this adapter's factors."""
    own_condition = condition.get(name) if isinstance(condition, Mapping) else condition
    if own_condition is None or _per_example_keys(adapter).isdisjoint(own_condition.values):
        return None
    return own_condition


def _call_values(
    name: str, adapter: Adapter, condition: Conditions | None, task_ids: TaskIds | None
) -> dict[str, Tensor]:
    """Factor key -> value by example, as far as a call gives it by a condition or by task ids."""
    own_condition = _condition_of(condition, name, adapter)
    if own_condition is not None:
        check_condition(adapter, own_condition)
    values = {} if own_condition is None else dict(own_condition.values)
    if task_ids is not None and adapter.task_keys:
        values |= adapter.task(task_ids).values
    return values


def _check_tasks(name: str, adapter: Adapter, condition: Condition | None, task_ids: TaskIds | None) -> None:
    """Raise a ValueError if an adapter has tasks, and nothing says which task an example belongs to."""
    if task_ids is not None:
        return
    served_condition = condition or adapter.fixed_condition
    keys_with_values = set() if served_condition is None else {*served_condition.values}
    keys_with_values |= {*(adapter.blocks.active.get().values or ())}
    if not adapter.task_keys.keys() <= keys_with_values:
        raise ValueError(
            f"adapter {name!r} ({adapter.method.name}) has {adapter.config.tasks} tasks: wrap the model once with "
            "metalora.peft.wrap(model) and call it with task_ids=..., a number or one for each example"
        )
