"""The adapter: owner of all factors of one method on one model."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.batched_fold import BatchedFold
from metalora.adapters.conditioning.condition import (
    Condition,
    ConditionCache,
    Conditioner,
    Values,
    merge_values,
    task_index,
)
from metalora.adapters.conditioning.features import Inputs, Recorder
from metalora.adapters.layers.fused import SharedInputCache
from metalora.adapters.layout import FactorSlice, Layout, ranks_by_path, read_slice
from metalora.adapters.mechanisms import materialize_factors
from metalora.adapters.targets import Target
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.methods.resolve import ResolvedMethod, resolve


class Adapter(nn.Module):
    """Owns the factors and the mapping net; adapted layers hold an unregistered reference to it.

    Made by `metalora.attach`. `factors` maps a name to its Parameter, modes in the order of the method's spec; the
    name is "target.factor", or "factor" where one network serves all targets ("factor.768" if their widths differ).
    """

    def __init__(self, resolved: ResolvedMethod, layout: Layout, factors: Mapping[str, Tensor]):
        super().__init__()
        self.resolved, self.layout = resolved, layout
        self.targets = {path: place.target for path, place in layout.targets.items()}
        learned = {key: value for key, value in factors.items() if not layout.params[key].frozen}
        self.owned = nn.ParameterDict({_slot(key): nn.Parameter(value) for key, value in learned.items()})
        self._frozen = nn.Module()  # a buffer for each: made from the seed, so never saved
        for key in factors.keys() - learned.keys():
            self._frozen.register_buffer(_slot(key), factors[key], persistent=False)
        self._per_example: tuple[str, ...] | None = None
        self.fresh = nn.ParameterDict()  # slices of a task that is being added; see metalora.new_task
        self._stacks, self._ranks = layout.stack_axes(), ranks_by_path(self.targets, resolved.config)
        self._slices: dict[str, tuple[Tensor, ...]] | None = None  # while a forward runs: stacked factors, cut once
        self.rank_dropout = nn.Dropout(resolved.config.dropout)
        self.conditioner: Conditioner | None = None
        self.extractor: tuple[nn.Module, ...] = ()  # a tuple: frozen, not ours to save
        self.recorder = Recorder()
        self.enabled = True
        self.weight_first = True  # let layers form W + Delta W where the cost model says so; False: always the cut
        self.fused = True  # write the adapter's products into the base's output; False: plain autograd, the reference
        self.shared, self.together, self.decoding = SharedInputCache(), BatchedFold(), ConditionCache()
        self.active: Values | None = None  # factors that differ by example; set only while a forward runs
        self.held: Values | None = None  # those of the innermost `using`
        self.beams = 1  # sequences that `generate` makes of one example, each with its condition
        self.fixed: Condition | None = None
        self.layers: dict[str, nn.Module] = {}
        self.model: tuple[nn.Module, ...] = ()
        self.hooks: list[Any] = []
        self.required_grad: dict[str, bool] = {}
        self.frozen_norms: list[nn.Module] = []

    # ---- what the adapter holds ------------------------------------------------------------------------------------
    @property
    def config(self) -> AdapterConfig:
        """The configuration, with what attaching has filled in."""
        return self.resolved.config

    @property
    def method(self) -> Method:
        """The method, with the digits and the order that the configuration asks for."""
        return self.resolved.method

    @property
    def generated(self) -> tuple[str, ...]:
        """The factors that a mapping net makes."""
        return self.resolved.generated

    @property
    def factors(self) -> dict[str, Tensor]:
        """Factor name -> Parameter ("layer1.0.conv1.A"), or a plain tensor where it is frozen.

        A generated factor's entry is its condition-free value c0.
        """
        return {key: self._value(key) for key in self.layout.params}

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """The factors that are not frozen."""
        return {key: self.owned[_slot(key)] for key, one in self.layout.params.items() if not one.frozen}

    def _value(self, key: str) -> Tensor:
        slot = _slot(key)
        value = self.owned._parameters.get(slot)  # the attribute takes a way through Python, in every layer's forward
        return value if value is not None else self.owned[slot] if slot in self.owned else getattr(self._frozen, slot)

    @property
    def scale(self) -> float:
        """alpha / r, alpha / sqrt(r) or alpha, as the config or the method says; one when alpha is None."""
        return self.resolved.scale_for(self.rank)

    def scale_of(self, path: str) -> float:
        """The scale of a target, by its own rank where `rank_pattern` gives it one."""
        return self.resolved.scale_for(self._ranks.get(path, self.rank))

    @property
    def rank(self) -> int:
        """The configured rank; of unequal bonds the largest."""
        return self.resolved.rank

    @property
    def conditional(self) -> bool:
        """Whether a factor is made by a mapping net, so that a forward needs a condition."""
        return self.conditioner is not None

    @property
    def common(self) -> bool:
        """Whether targets have a stored factor in common: a forward cuts its slices, and reads an input by it, once."""
        views = [view.key for place in self.layout.targets.values() for view in place.views.values()]
        return len({*views}) < len(views)

    @property
    def task_keys(self) -> dict[str, int]:
        """FactorParam factors of which every example takes the slice of its task, and their task axes."""
        if self.config.tasks == 1:
            return {}
        stored = self.layout.params.items()
        return {key: one.modes.index("task") for key, one in stored if "task" in one.modes}

    @property
    def per_example(self) -> tuple[str, ...]:
        """The factors that differ by example: generated, or indexed by a task."""
        if self._per_example is None:
            found = dict.fromkeys(self.generated if self.conditional else ())
            found |= dict.fromkeys(self.layout.params[key].factor for key in self.task_keys)
            self._per_example = tuple(found)
        return self._per_example

    def replace(self, config: AdapterConfig, layout: Layout) -> None:
        """Take another configuration and the layout that fits it; the caller gives the factors their new shapes."""
        self.resolved, self.layout, self._per_example, self.together = resolve(config), layout, None, BatchedFold()

    def num_params(self) -> int:
        """Trainable numbers: the factors of every target and the mapping net."""
        made = self.conditioner.parameters() if self.conditioner is not None else ()
        return sum(p.numel() for p in (*self.owned.parameters(), *made))

    def parameter_groups(
        self, lr: float, mapping_lr_ratio: float = 0.2, factor_lr_ratio: Mapping[str, float] | None = None
    ) -> list[dict[str, Any]]:
        """Optimiser groups: the factors at `lr`, some at a ratio of it, the mapping net at `mapping_lr_ratio` of it."""
        ratios = factor_lr_ratio or {}
        for factor in ratios:
            if factor not in self.method.factors:
                raise ValueError(f"factor_lr_ratio names {factor!r}{nearest(factor, self.method.factors)}")
        groups: dict[float, list[nn.Parameter]] = {}
        for bank in (self.owned, self.fresh):
            for key, stored in self.layout.params.items():
                if _slot(key) in bank:
                    groups.setdefault(ratios.get(stored.factor, 1.0), []).append(bank[_slot(key)])
        if self.conditioner is not None:
            groups.setdefault(mapping_lr_ratio, []).extend(self.conditioner.parameters())
        return [{"params": params, "lr": lr * ratio} for ratio, params in groups.items()]

    # ---- reading factors -------------------------------------------------------------------------------------------
    def read(
        self, target: Target, values: Values | None = None, only: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """The factors of one target, or some; those that differ by example from `values`, else from the active ones."""
        values = self.active if values is None else values
        found, per_example = {}, self.per_example
        for factor, view in self.layout.targets[target.path].views.items():
            if only is not None and factor not in only:
                continue
            if factor in per_example:
                if values is None:
                    raise RuntimeError(
                        f"factor {view.key!r} differs by example and no condition is active: call the model itself, "
                        "pass condition=..., enter adapter.using(condition), or checkpoint with metalora.checkpoint"
                    )
                value = read_slice(values[view.key], view, offset=1)
            else:
                value = self._stored(view)
            found[factor] = value
        return materialize_factors(self.layout.targets[target.path].handlers, found)

    def _stored(self, view: FactorSlice) -> Tensor:
        """A target's slice: from the stack that the forward cut once (backward 8 times faster), else cut here."""
        axis = self._stacks.get(view.key)
        if axis is None or self._slices is None or not isinstance(dict(view.index).get(axis), int):
            return read_slice(self._value(view.key), view)
        rest = tuple((a - (a > axis), index) for a, index in view.index if a != axis)
        return read_slice(self._slices[view.key][dict(view.index)[axis]], FactorSlice(view.key, rest))

    def read_for(
        self, target: Target, batch: int, values: Values | None = None, only: Collection[str] | None = None
    ) -> tuple[dict[str, Tensor], int]:
        """`read` for a layer's batch, and the number of conditions: 1 or the batch; ValueError if it fits neither."""
        factors, n = self.read(target, values, only), self.count(target, values)
        if n in (1, batch):
            return factors, n
        if n * self.beams != batch:
            raise ValueError(f"target {target.path!r}: the condition is for {n} examples, the layer got {batch}")
        for factor in self.per_example:
            factors[factor] = factors[factor].repeat_interleave(self.beams, 0)
        return factors, batch

    def count(self, target: Target, values: Values | None = None) -> int:
        """The number of conditions that are active at a target; 1 where no factor differs by example."""
        values, factor = self.active if values is None else values, next(iter(self.per_example), None)
        if factor is None or values is None:
            return 1
        return values[self.layout.targets[target.path].views[factor].key].shape[0]

    def delta(self, target: str, condition: Condition | None = None) -> Tensor:
        """Dense Delta W of a target in the base weight's layout; (n, ...) for a condition of n > 1 examples."""
        if target not in self.layers:
            raise ValueError(f"unknown target {target!r}{nearest(target, self.layers)}")
        return self.layers[target].delta(self._values(condition, "delta"))

    def export_lora(
        self, folder: str | Path, condition: Condition | None = None, task: int | str | None = None, **limits: Any
    ) -> list[Any]:
        """Write plain LoRA that PEFT loads; `limits` are those of `io.lora_export.export_lora`, which says the rest."""
        from metalora.io.lora.export import export_lora

        return export_lora(self, folder, condition, task, **limits)

    def _values(self, condition: Condition | None, what: str) -> Values | None:
        condition = self.fixed if condition is None else condition
        if self.per_example and condition is None:
            made = "adapter.condition(inputs) makes one, .mean() of it is one for all"
            raise ValueError(
                f"{what}: {self.method.name} takes {', '.join(self.per_example)} from a condition, pass condition=... "
                f"({made if self.conditional else 'adapter.task(number) is that of a task'})"
            )
        return None if condition is None else condition.values

    # ---- conditions ------------------------------------------------------------------------------------------------
    def condition(self, inputs: Inputs, labels: Tensor | None = None) -> Condition:
        """Make a condition from inputs: one per example, or one for a (labelled) support set, as the config says.
        inputs: what the model takes (for source=tensor: the features, (n, d)); labels: (n,) integers.
        Differentiable with respect to the mapping net. ValueError for a static adapter or features that are not finite.
        """
        return self.condition_from(self.features(inputs) if self.conditional else inputs, labels)

    def condition_from(self, features: Tensor, labels: Tensor | None = None) -> Condition:
        """`condition` of features that were kept: (n, d), as `adapter.features` gives them."""
        if self.conditioner is None:
            raise ValueError(f"{self.method.name}: no factor is generated, so there is no condition to make")
        return self.conditioner(features, labels, self._centre())

    def task(self, ids: Tensor | Sequence[int] | int) -> Condition:
        """The condition of tasks by number: one for each of `ids`, (n,), or one for all where it is a single number.

        ValueError for a method without a task mode and for a number that is not one of its tasks.
        """
        if not self.task_keys:
            raise ValueError(f"{self.method.name} with tasks={self.config.tasks} has no tasks to choose from")
        index = task_index(ids, self.config.tasks, self.owned[_slot(next(iter(self.task_keys)))].device)
        values = {}
        for key, axis in self.task_keys.items():
            values[key] = self.owned[_slot(key)].index_select(axis, index).movedim(axis, 0)
            if len(self.fresh):
                newest = (index == self.config.tasks - 1).reshape(-1, *[1] * (values[key].ndim - 1))
                values[key] = torch.where(newest, self.fresh[_slot(key)], values[key])
        return Condition(values, index[:, None].float(), torch.zeros((), device=index.device))

    def begin_task(self, slices: Mapping[str, nn.Parameter]) -> None:
        """Read the newest task's slices from these parameters, by factor key, until `end_task`."""
        self.fresh.update({_slot(key): value for key, value in slices.items()})

    @torch.no_grad()
    def end_task(self) -> None:
        """Write the slices of `begin_task` where they belong."""
        for key, axis in self.task_keys.items():
            self.owned[_slot(key)].select(axis, self.config.tasks - 1).copy_(self.fresh[_slot(key)])
        self.fresh.clear()

    def neutral(self) -> Condition:
        """The condition c0 that no feature has changed."""
        assert self.conditioner is not None
        return self.conditioner.neutral(self._centre())

    def _centre(self) -> dict[str, Tensor]:
        return {key: self.owned[_slot(key)] for key in self.conditioner.shapes}

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        """The raw features of inputs under the frozen network, (n, d) float32; no gradient, adapter off, eval mode."""
        if self.config.condition.source == "tensor":
            return inputs.float()
        with self.disabled():
            return self.recorder.of(self.extractor[0] if self.extractor else self.model[0], inputs)

    def calibrate(self, inputs: Inputs | Iterable[Inputs]) -> None:
        """Freeze the mean and standard deviation that features are standardised by, from training inputs."""
        if self.conditioner is None:
            return
        one = isinstance(inputs, (Tensor, Mapping)) or hasattr(inputs, "keys")
        self.conditioner.calibrate(torch.cat([self.features(batch) for batch in ([inputs] if one else inputs)]))

    @contextlib.contextmanager
    def using(self, condition: Condition | Values) -> Iterator[None]:
        """Run every forward inside with this condition, of the model or of any part of it."""
        values = condition.values if isinstance(condition, Condition) else condition
        before = self.active, self.held
        self.active = self.held = values
        try:
            yield
        finally:
            self.active, self.held = before

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the frozen base inside."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def fix(self, condition: Condition | None) -> None:
        """Serve every following forward with one condition (None: back to making them)."""
        self.fixed = condition

    # ---- the hooks of the model ------------------------------------------------------------------------------------
    def before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook of the model: take the explicit condition and task ids, or make a condition."""
        for norm in self.frozen_norms:
            norm.training = False
        condition, ids = kwargs.pop("condition", None), kwargs.pop("task_ids", None) if self.task_keys else None
        if self.enabled and not self.merged:
            self.begin(condition, ids, args, kwargs)
        elif self.merged and not (condition is None and ids is None):
            raise ValueError("the adapter is merged, so a forward takes no condition and no task_ids; unmerge it first")
        return args, kwargs

    def begin(self, condition: Condition | None, ids: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Make ready for a forward of the model with these inputs: cut the stacks, choose the condition."""
        self.shared.clear(running=True)
        self._slices = {key: self._value(key).unbind(axis) for key, axis in self._stacks.items()}
        self.together.begin(self, self._stored)
        if self.per_example:
            self.active = self._choose(condition, ids, args, kwargs)

    def _choose(self, condition: Condition | None, ids: Any, args: tuple, kwargs: dict[str, Any]) -> Values:
        held = self.held if self.held is not None or self.fixed is None else self.fixed.values
        values = held if condition is None else condition.values
        if values is None:
            known = self.decoding.values(kwargs, needed=self.conditional)
            values = self._from_inputs(args, kwargs, known) if self.conditional else known or {}
        if ids is not None:
            values = merge_values(values, self.task(ids).values)
        if any(key not in values for key in self.task_keys):
            raise ValueError(
                f"{self.method.name} has {self.config.tasks} tasks: call the model with task_ids=..., a number or one "
                "for each example"
            )
        return values

    def _from_inputs(self, args: tuple, kwargs: dict[str, Any], known: Values | None) -> Values:
        """The values that a forward with these inputs starts with; `known` are those of the sequences it continues."""
        config = self.config.condition
        if config.source == "stem":  # its hook replaces c0 as soon as it has run
            self.recorder.start(kwargs)
            self.decoding.ahead = known
            return merge_values(known or {}, self.neutral().values)
        if known is not None:
            return known
        if config.scope == "support" or config.source == "tensor":
            raise ValueError(
                f"this adapter's condition comes from {'a support set' if config.scope == 'support' else 'a tensor'}: "
                "make it with adapter.condition(...) and call model(..., condition=condition)"
            )
        inputs: Inputs = kwargs if not args else args[0] if len(args) == 1 and not kwargs else args
        return self.condition(inputs).values

    def after_stem(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the stem: the condition is made from its output, in the same pass, or known."""
        if self.recorder.active and self.recorder.seen and self.enabled:
            self.recorder.stop()
            features, known = self.recorder.take(), self.decoding.ahead
            made = known or self.conditioner(features, None, self._centre()).values
            self.active = {**self.active, **{key: made[key] for key in self.conditioner.shapes}}

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: no condition outlives its forward."""
        if self.enabled:
            self.end(output)

    def end(self, output: Any) -> None:
        """Forget what `begin` made ready, except for those who continue the sequences of the output."""
        self.decoding.keep(output, self.active)
        self.shared.clear()
        self.together.ups = {}
        self.recorder.stop()
        self.active, self._slices = self.held, None

    @property
    def merged(self) -> bool:
        """Whether the base weights hold base + Delta W."""
        return any(layer.original is not None for layer in self.layers.values())


def _slot(key: str) -> str:
    return key.replace(".", "/")
