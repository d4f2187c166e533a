"""The adapter: owner of all factors of one method on one model, with the public verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import ref

import torch
from torch import Tensor, nn

from metalora._util.described import Described, share_in_words
from metalora._util.suggest import check_choice, nearest
from metalora.adapters.batched_fold import BatchedFold, batched_folds
from metalora.adapters.blocks import Active, Blocks
from metalora.adapters.bound_target import LEARNED_MODULE, slot_of
from metalora.adapters.cast_once import CastOnce
from metalora.adapters.conditioning.check import check_condition
from metalora.adapters.conditioning.condition import Condition, Maker, Values, task_index
from metalora.adapters.conditioning.condition_cache import ConditionCache
from metalora.adapters.conditioning.extractor import ImageConversion
from metalora.adapters.conditioning.features import Inputs, Recorder
from metalora.adapters.conditioning.mapping_net import Conditioner
from metalora.adapters.conditioning.prompt import check_prompt_is_known, prompt_inputs
from metalora.adapters.conditioning.rows import TokenValues, check_packed, values_of_rows
from metalora.adapters.forward_state import Forward, ForwardState, ValueFactors
from metalora.adapters.layout import Layout, scales_by_path
from metalora.adapters.offloading import ParameterStore
from metalora.adapters.sharing import Sharing
from metalora.adapters.skipped import SkippedWeight, skipped_sentences
from metalora.adapters.triton_kernels.available import check_available
from metalora.adapters.value_factors import FactorsUnderValues
from metalora.config import AdapterConfig
from metalora.methods.method import FROM_DATA, Method
from metalora.methods.resolve import ResolvedMethod, resolve

if TYPE_CHECKING:
    from metalora.adapters.layers import AdaptedLayer, OutputLayer
    from metalora.adapters.trained_biases import OutsideBias
    from metalora.ranks.sweep import SweepReport


class Adapter(Described, nn.Module):
    """Owns the factors and the mapping net; adapted layers hold a reference to it that is not registered.

    `metalora.attach` makes it. `factors` maps a name to its Parameter, modes in the order of the method's spec; the
    name is "target.factor", or "factor" if one network serves all targets ("factor.768" if their widths differ).

    Attributes:
        resolved: The method with the configuration that it is used with.
        layout: Which factors are stored, and what every target reads of them.
        targets: Path -> target.
        layers: Path -> adapted layer.
        skipped: What the preset of the targets left out, and why; empty for targets by name.
        started: False while a start from data has not got its data.
        blocks: The `using` and `disabled` blocks that are entered, for each thread and asyncio task its own.
        state: What lives while a forward runs, for each thread its own.
        weight_first: Let layers form W + Delta W if the cost model says so; False: never.
        fused: Let the adapter's products share passes with the base's; False: plain autograd, the reference.
        uses_triton: True if layers take Triton kernels where they can; see `use_kernels`.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="linear", exclude=("2",)))
        >>> adapter.num_params()
        32
        >>> adapter.merge(); adapter.unmerge(); adapter.detach()
    """

    def __init__(self, resolved: ResolvedMethod, layout: Layout, factors: Mapping[str, Tensor]):
        super().__init__()
        self.resolved, self.layout = resolved, layout
        self.targets = {path: target_layout.target for path, target_layout in layout.targets.items()}
        learned = {key: value for key, value in factors.items() if not layout.params[key].frozen}
        parameters = {slot_of(key): nn.Parameter(value) for key, value in learned.items()}
        self.add_module(LEARNED_MODULE, ParameterStore(parameters))
        self._frozen = nn.Module()  # a buffer for each frozen factor
        for key in factors.keys() - learned.keys():
            from_data = resolved.inits[layout.params[key].factor] == FROM_DATA
            self._frozen.register_buffer(slot_of(key), factors[key], persistent=from_data)
        self.given: tuple[str, ...] = ()  # keys of frozen factors that were handed over, not made from the seed
        self.biases = ParameterStore()  # changes of the base's biases, by "path/bias"; see `bias_changes`
        self.outside_biases: dict[str, OutsideBias] = {}  # of layers that are no targets
        self.pending_task = ParameterStore()  # slices of a task that is being added; see metalora.new_task
        self.dropout = resolved.config.dropout  # a plain number, which every layer reads in every forward
        self.rank_dropout = nn.Dropout(self.dropout)
        self.conditioner: Conditioner | None = None
        self.extractor: tuple[nn.Module, ...] = ()  # a tuple: frozen, not ours to save
        self.extractor_images = ImageConversion()
        self.recorder = Recorder()
        self.condition_cache = ConditionCache()
        self.reads_prompt = False  # whether a condition is made from the prompt of a causal language model
        self.fixed_condition: Condition | None = None
        self.accepted_origins: set[str] = set()  # of condition files that were compared with this adapter
        self.sharing = Sharing()
        self.digest_in_file: str | None = None  # before its numbers were rounded, of an adapter that was loaded
        self.blocks = Blocks()
        self.state = ForwardState()
        self.started = FROM_DATA not in resolved.inits.values()
        self.weight_first = True
        self.fused = True
        self.uses_triton = False
        self.layers: dict[str, AdaptedLayer | OutputLayer] = {}
        self.skipped: tuple[SkippedWeight, ...] = ()
        self.hooks: list[Any] = []  # handles of the hooks of the condition's source
        self.required_grad: dict[str, bool] = {}  # what `detach` restores
        self.frozen_norms: list[nn.Module] = []  # batch normalisation, whose statistics belong to the frozen base
        self._model: tuple[nn.Module, ...] = ()  # a tuple: the model has the adapter as a part, not the other way round
        self._index_layout()

    def set_layout(self, config: AdapterConfig, layout: Layout) -> None:
        """Take a configuration and the layout that fits it; the caller gives the factors their new shapes."""
        self.resolved, self.layout = resolve(config), layout
        self._index_layout()

    def _index_layout(self) -> None:
        """Derive from the layout what every forward needs."""
        self.stack_axes = self.layout.stack_axes()
        self._scales = scales_by_path(self.targets, self.resolved)
        self.task_keys = self._task_keys()
        self.per_example = self.resolved.per_example
        self._folds: list[BatchedFold] | None = None  # to be found anew, since the forms change with the layout
        self._cast_once: CastOnce | None = None
        self._under_values: FactorsUnderValues | None = None

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
        """The factors that a mapping net makes; empty if the scope of the condition is "constant"."""
        return self.resolved.generated

    # ---- what the adapter holds ------------------------------------------------------------------------------------
    @property
    def model(self) -> nn.Module:
        """The model that the adapter is attached to."""
        return self._model[0]

    @property
    def factors(self) -> dict[str, Tensor]:
        """Factor name -> Parameter ("layer1.0.conv1.A"), or a plain tensor if it is frozen.

        A generated factor's entry is its condition-free value c0.
        """
        return {key: self.stored_value(key) for key in self.layout.params}

    @property
    def learned_by_slot(self) -> nn.ParameterDict:
        """The factors that are not frozen, by the name that they have as parameters (see `slot_of`)."""
        return cast(nn.ParameterDict, self._modules[LEARNED_MODULE])

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """The factors that are not frozen."""
        parameters = self.learned_by_slot
        return {key: parameters[slot_of(key)] for key, param in self.layout.params.items() if not param.frozen}

    @property
    def kept_frozen(self) -> dict[str, Tensor]:
        """The frozen factors that no seed makes again, since they were computed from data or given; files have them."""
        from_data = {factor for factor, kind in self.resolved.inits.items() if kind == FROM_DATA}
        return {
            key: self.stored_value(key)
            for key, param in self.layout.params.items()
            if param.frozen and (param.factor in from_data or key in self.given)
        }

    @property
    def bias_changes(self) -> dict[str, nn.Parameter]:
        """Path of a layer -> change of its bias, of the biases that are trained along (`config.bias`)."""
        return {slot.removesuffix("/bias").replace("/", "."): change for slot, change in self.biases.items()}

    def stored_value(self, key: str) -> Tensor:
        """The stored factor of a key, (*shape) as the layout says it."""
        slot = slot_of(key)
        value = self.learned_by_slot._parameters.get(slot)
        if value is not None:
            return value
        frozen: Tensor = self.learned_by_slot[slot] if slot in self.learned_by_slot else getattr(self._frozen, slot)
        return frozen

    def batched_folds(self) -> list[BatchedFold]:
        """The targets whose Mid and Right are folded together in a forward."""
        if self._folds is None:
            self._folds = batched_folds(self)
        return self._folds

    def cast_once(self) -> CastOnce:
        """The layers whose factors are cast together in a forward."""
        if self._cast_once is None:
            self._cast_once = CastOnce(self)
        return self._cast_once

    def factors_of_values(self, values: Values) -> ValueFactors | None:
        """What is made of values for all targets together in this forward: now, if no target has asked before.

        Args:
            values: The values that differ by example.

        Returns:
            None outside of a forward, and before its condition is known: the values are c0, which few targets read.
        """
        forward = self.state.forward
        if forward is None or self.recorder.active:
            return None
        if forward.of_values is None or forward.of_values.values is not values:
            if self._under_values is None:
                self._under_values = FactorsUnderValues(self)
            forward.of_values = self._under_values(values, forward.cast)
        return forward.of_values

    @property
    def scale(self) -> float:
        """alpha / r, alpha / sqrt(r) or alpha, as the config or the method says; one if alpha is None."""
        return self.resolved.scale_for(self.rank)

    def scale_of(self, path: str) -> float:
        """The scale of a target, by its own rank and alpha if `rank_pattern` or `alpha_pattern` give it one."""
        return self._scales[path]

    @property
    def rank(self) -> int:
        """The configured rank; the largest if the bonds have a rank each."""
        return self.resolved.rank

    @property
    def conditional(self) -> bool:
        """True if a mapping net makes a factor, so that a forward needs a condition."""
        return self.conditioner is not None

    def required_conditioner(self) -> Conditioner:  # no property: torch.jit reads all of these
        """The mapping net with its standardisation; ValueError for a static adapter."""
        if self.conditioner is None:
            raise ValueError(f"{self.method.name}: no factor is generated, so there is no condition to make")
        return self.conditioner

    @property
    def shares_factors(self) -> bool:
        """True if targets read one stored factor together, so that a forward cuts its slices once."""
        keys = [view.key for target_layout in self.layout.targets.values() for view in target_layout.views.values()]
        return len({*keys}) < len(keys)

    def _task_keys(self) -> dict[str, int]:
        """Stored factors of which every example takes the slice of its task, and their task axes."""
        if self.config.tasks == 1:
            return {}
        params = self.layout.params.items()
        return {key: param.modes.index("task") for key, param in params if "task" in param.modes}

    def num_params(self) -> int:
        """Count the trainable numbers: the factors of every target, the biases and the mapping net."""
        generated = self.conditioner.parameters() if self.conditioner is not None else ()
        learned = (*self.learned_by_slot.parameters(), *self.biases.parameters(), *generated)
        return sum(parameter.numel() for parameter in learned)

    def parameter_groups(
        self, lr: float, mapping_lr_ratio: float = 0.2, factor_lr_ratio: Mapping[str, float] | None = None
    ) -> list[dict[str, Any]]:
        """Make optimiser groups: the factors at `lr`, some at a ratio of it, the mapping net at `mapping_lr_ratio`.

        Args:
            lr: Learning rate of the factors and biases.
            mapping_lr_ratio: Learning rate of the mapping net, divided by `lr`.
            factor_lr_ratio: Factor of the method -> its learning rate, divided by `lr`.

        Raises:
            ValueError: `factor_lr_ratio` names a factor that the method does not have.
        """
        ratios = factor_lr_ratio or {}
        for factor in ratios:
            if factor not in self.method.factors:
                raise ValueError(f"factor_lr_ratio names {factor!r}{nearest(factor, self.method.factors)}")
        groups: dict[float, list[nn.Parameter]] = {}
        for parameters in (self.learned_by_slot, self.pending_task):
            for key, param in self.layout.params.items():
                if slot_of(key) in parameters:
                    groups.setdefault(ratios.get(param.factor, 1.0), []).append(parameters[slot_of(key)])
        if len(self.biases):
            groups.setdefault(1.0, []).extend(self.biases.values())
        if self.conditioner is not None:
            groups.setdefault(mapping_lr_ratio, []).extend(self.conditioner.parameters())
        return [{"params": members, "lr": lr * ratio} for ratio, members in groups.items()]

    def delta(self, target: str, condition: Condition | None = None) -> Tensor:
        """Return the dense Delta W of a target in the base weight's layout.

        Args:
            target: Path of the target.
            condition: The condition of an adapter whose factors differ by example; None: the fixed one.

        Returns:
            Delta W (*weight), or (n, *weight) for a condition of n > 1 examples.

        Raises:
            ValueError: An unknown target, a missing condition, or a method that has no Delta W.
        """
        if target not in self.layers:
            raise ValueError(f"unknown target {target!r}{nearest(target, self.layers)}")
        return self.layers[target].delta(self.values_of(condition, "delta"))

    def check_started(self) -> None:
        """Raise a ValueError if the adapter starts from data and has not got any."""
        if not self.started:
            raise ValueError(
                f"init={self.config.init!r} starts from data: call metalora.start_from_data(model, batches) first"
            )

    def values_of(self, condition: Condition | None, verb: str) -> Values | None:
        """The values of a condition, or of the fixed one; ValueError if the adapter needs one and has none."""
        condition = self.fixed_condition if condition is None else condition
        if self.per_example and condition is None:
            how = (
                "adapter.condition(inputs) makes one, .mean() of it is one for all"
                if self.conditional
                else "adapter.task(number) is that of a task"
            )
            raise ValueError(
                f"{verb}: {self.method.name} takes {', '.join(self.per_example)} from a condition, pass condition=... "
                f"({how})"
            )
        if condition is None:
            return None
        check_condition(self, condition)
        return condition.values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """What `.to()`, `.half()` and the like call with a function of a tensor; see `nn.Module`."""

        # `.to(memory_format=torch.channels_last)` takes a tensor of five axes for a batch of volumes, and refuses it.
        def without_memory_format(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten()).view(tensor.shape) if tensor.ndim == 5 else fn(tensor)

        super()._apply(without_memory_format, recurse)  # type: ignore[no-untyped-call]
        return self

    # ---- conditions ------------------------------------------------------------------------------------------------
    def condition(self, inputs: Inputs, labels: Tensor | None = None) -> Condition:
        """Make a condition from inputs: one per example, or one for a (labelled) support set, as the config says.

        Args:
            inputs: What the model takes; for condition source "tensor" the features (n, d). Of a causal language model
                the tokens before the first label that is not -100, or those of `prompt_mask`, (n, tokens).
            labels: Integers (n,), for a label-aware condition.

        Returns:
            The condition; differentiable with respect to the mapping net.

        Raises:
            ValueError: A static adapter, features that are not finite, missing labels, an unknown prompt.
        """
        assert self.required_conditioner() is not None  # raises a ValueError for a static adapter
        if self.reads_prompt:
            check_prompt_is_known(self, inputs)
        return self.condition_from(self.features(inputs), labels)

    def condition_from(self, features: Tensor, labels: Tensor | None = None) -> Condition:
        """Make a condition from features (n, d) that were kept, as `adapter.features` gives them."""
        return self._made_here(self.required_conditioner()(features, labels, self.centre()))

    def _made_here(self, condition: Condition) -> Condition:
        """Return a condition that knows its adapter; under torch.compile, which traces no weak reference, as it is."""
        return condition if torch.compiler.is_compiling() else replace(condition, maker=self.as_maker())

    def as_maker(self) -> Maker:
        """Return what a condition says of this adapter, with the numbers that it has now."""
        return Maker(ref(self), self.sharing.swaps)

    def task(self, ids: Tensor | Sequence[int] | int) -> Condition:
        """Return the condition of tasks by number: one for each of `ids` (n,), or one for all for a single number.

        Raises:
            ValueError: A method without a task mode, or a number that is not one of its tasks.
        """
        if not self.task_keys:
            raise ValueError(f"{self.method.name} with tasks={self.config.tasks} has no tasks to choose from")
        index = task_index(ids, self.config.tasks, self.learned_by_slot[slot_of(next(iter(self.task_keys)))].device)
        values = {}
        for key, axis in self.task_keys.items():
            values[key] = self.learned_by_slot[slot_of(key)].index_select(axis, index).movedim(axis, 0)  # (n, *others)
            if len(self.pending_task):  # inside of `new_task` the newest slice is a parameter of its own
                newest = (index == self.config.tasks - 1).reshape(-1, *[1] * (values[key].ndim - 1))
                values[key] = torch.where(newest, self.pending_task[slot_of(key)], values[key])
        return self._made_here(Condition(values, index[:, None].float(), torch.zeros((), device=index.device)))

    def neutral(self) -> Condition:
        """Return the condition c0, which no feature has changed."""
        return self._made_here(self.required_conditioner().neutral(self.centre()))

    def centre(self) -> dict[str, Tensor]:
        """The condition-free values c0 of the generated factors: key -> (*shape of the factor)."""
        return {key: self.learned_by_slot[slot_of(key)] for key in self.required_conditioner().shapes}

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        """Return the raw features (n, d), float32, of inputs under the frozen network, in eval mode.

        Raises:
            ValueError: The features are those of the model, and the adapter is merged into it.
        """
        condition = self.config.condition
        if condition.source == "tensor":
            return inputs.float()  # type: ignore[union-attr]
        if self.reads_prompt:
            inputs = prompt_inputs(inputs)
        if self.extractor:
            return self.recorder.features_of(self.extractor[0], self.extractor_images(inputs))
        with self.running_frozen():  # features are those of the base, whatever the adapter has learned
            # The stages that the architecture gives are no part of the head.
            reads_logits = condition.source != "stages" or bool(condition.stages)
            return self.recorder.features_of(self.model, inputs, reads_logits)

    def running_frozen(self) -> contextlib.AbstractContextManager[None]:
        """Run the frozen base inside, for the library itself: calls inside may have conditions, unlike in `disabled`.

        Raises:
            ValueError: The adapter is merged.
        """
        self._check_base()
        return self.state.part(enabled=False, depth=self.blocks.active.get().depth)

    def _check_base(self) -> None:
        """Raise a ValueError if the frozen network cannot run, because its weights hold Delta W."""
        if self.merged:
            raise ValueError("the adapter is merged, so the frozen network cannot run: unmerge it first")

    def calibrate(self, inputs: Inputs | Iterable[Inputs]) -> None:
        """Freeze the mean and standard deviation that features are standardised by, from training inputs.

        Args:
            inputs: One batch of what the model takes, or an iterable of batches.

        Raises:
            ValueError: A static adapter, fewer than two examples, or features that are not finite or all equal.
        """
        conditioner = self.required_conditioner()
        single = isinstance(inputs, (Tensor, Mapping)) or hasattr(inputs, "keys")
        batches = cast(Iterable[Inputs], [inputs] if single else inputs)
        conditioner.calibrate(torch.cat([self.features(batch) for batch in batches]))

    def using(
        self, condition: Condition | Values, *, rows: Tensor | Sequence[int] | None = None, packed: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Run every forward inside with this condition, of the model or of any part of it.

        The block is that of this thread and this asyncio task; those that are started inside of it take it over.

        Args:
            condition: The condition of all examples, or of each; with `rows` any number n of conditions.
            rows: Number of the condition of each example of the batch, (b,); of a packed batch that of each token,
                (tokens,).
            packed: Whether the inputs are one row, (1, tokens, ..), in which the tokens of several examples follow one
                another. All targets must be linear layers or embeddings.

        Raises:
            RuntimeError: In a forward, if a generator that is suspended has entered the block; at the end, if a block
                that was entered later is still active, or if another thread or task leaves it.
            ValueError: Another adapter made the condition; a row is not the number of a condition; or a target has no
                condition for each token.

        Example:
            >>> import metalora
            >>> model = nn.Sequential(nn.Linear(4, 4))
            >>> adapter = metalora.attach(model, metalora.AdapterConfig("metatt-4+1d", rank=2, tasks=3, targets="0"))
            >>> with adapter.using(adapter.task([0, 1, 2]), rows=[2, 2, 0, 1, 1], packed=True):
            ...     model(torch.rand(1, 5, 4)).shape
            torch.Size([1, 5, 4])
        """
        if isinstance(condition, Condition):
            check_condition(self, condition)
        values = condition.values if isinstance(condition, Condition) else condition
        if packed:
            check_packed(self)
            if rows is None:
                raise ValueError("packed=True needs rows=..., the number of the condition of each token")
        if rows is not None:
            values = values_of_rows(values, rows, copy=packed or not self.uses_triton)
        return self.blocks.entered(values=TokenValues(values) if packed else values)

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Run the frozen base inside, in this thread and asyncio task; the errors are those of `using`.

        Raises:
            ValueError: The adapter is merged.
        """
        self._check_base()
        return self.blocks.entered(disabled=True)

    def current(self) -> Active | Forward:
        """What a layer of this adapter runs under now: the running forward, or the blocks if they are newer."""
        active, forward = self.blocks.active.get(), self.state.forward
        if forward is not None and forward.caller is not None:
            forward = self.state.forget_unfinished()
        if forward is not None and active.depth <= forward.depth:
            return forward
        if active.in_generators:
            active.check_generators()
        return active

    @property
    def beams(self) -> int:
        """How many rows of the batch share one condition: `generate` with beams or several sequences."""
        return self.blocks.active.get().beams

    def fix(self, condition: Condition | None) -> None:
        """Serve every following forward with one condition (None: make conditions again).

        Raises:
            ValueError: No factor of the adapter differs by example or task, or another adapter made the condition.
        """
        if condition is not None and not self.per_example:
            raise ValueError(f"fix: no factor of {self.method.name} differs by example or task")
        if condition is not None:
            check_condition(self, condition)
        self.fixed_condition = condition

    @property
    def merged(self) -> bool:
        """True if the base weights hold base + Delta W."""
        return any(layer.original is not None for layer in self.layers.values())

    def generate(
        self,
        *args: Any,
        condition: Condition | None = None,
        task_ids: Tensor | Sequence[int] | int | None = None,
        **options: Any,
    ) -> Any:
        """Call the model's own `generate`, each example under its condition and its task.

        Without `condition` the one of a `using` block counts, or the fixed one, or the one of the key-value cache that
        the call continues, or one made from the prompt. It holds for every forward of the call: for all sequences of
        an example (beams, `num_return_sequences`), with any cache, an assistant, a prompt lookup or a prefill in
        chunks. `model.generate` takes the same arguments.

        Args:
            *args: The positional arguments of the model's `generate`.
            condition: The condition of one example or of each example of the prompt, or None.
            task_ids: A task for each example, or one for all, of a method with tasks.
            **options: The other arguments of the model's `generate`.

        Returns:
            What the model returns.

        Raises:
            ValueError: The model has no `generate`, a condition that does not fit the prompt or that would have no
                effect, or no condition and nothing to make it from.

        Example:
            >>> import metalora
            >>> class Writer(nn.Sequential):
            ...     def generate(self, inputs):
            ...         return self(inputs).argmax(-1)
            >>> model = Writer(nn.Linear(4, 4))
            >>> config = metalora.AdapterConfig("metatt-4+1d", rank=2, tasks=3, targets="0")
            >>> metalora.attach(model, config).generate(torch.rand(2, 4), task_ids=[0, 2]).shape
            torch.Size([2])
        """
        from metalora.adapters.generation import generate

        return generate(self, condition, task_ids, args, options)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        condition: Condition | None = None,
        task_ids: Tensor | Sequence[int] | int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Call the model's own `generate_batch` (continuous batching), each prompt under its condition and its task.

        The prompts have different lengths, and those of many tenants run together; every token of a step takes the
        factors of the tenant whose prompt it belongs to. Key-value blocks of equal prompts are shared within a tenant
        only. `model.generate_batch` takes the same arguments; the managers of `model.init_continuous_batching` and
        `model.continuous_batching_context_manager` take `condition=` and `task_ids=` in `add_request` and
        `add_requests`.

        Args:
            prompts: The tokens of each prompt.
            condition: One condition for all prompts, or one for each of them; None: chosen as for `generate`.
            task_ids: A task for each prompt, or one for all, of a method with tasks.
            **options: The other arguments of the model's `generate_batch`, such as `continuous_batching_config`, whose
                `num_blocks` says how much memory the key-value cache takes (otherwise most of what is free).

        Returns:
            Name of the request -> `GenerationOutput` of transformers, in the order of the prompts.

        Raises:
            ValueError: The model has no continuous batching, a condition that does not fit the prompts or that would
                have no effect, no condition and nothing to make it from, a configuration that records or compiles
                steps, or a call inside of `disabled()`, which another thread would not see.

        Example:
            >>> import metalora
            >>> from transformers import ContinuousBatchingConfig, GPT2Config, GPT2LMHeadModel
            >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=1))
            >>> config = metalora.AdapterConfig("metatt-4+1d", rank=2, tasks=3, targets="c_attn")
            >>> adapter = metalora.attach(model, config)
            >>> memory = ContinuousBatchingConfig(num_blocks=8, page_size=8, max_batch_tokens=32)
            >>> texts = adapter.generate_batch(
            ...     [[5, 6, 7], [5, 6, 7]], task_ids=[0, 2], continuous_batching_config=memory, max_new_tokens=4
            ... )
            >>> [len(text.generated_tokens) for text in texts.values()]
            [4, 4]
        """
        from metalora.adapters.continuous import generate_batch

        outputs: dict[str, Any] = generate_batch(self, prompts, condition, task_ids, options)
        return outputs

    # ---- kernels ---------------------------------------------------------------------------------------------------
    def use_kernels(self, name: Literal["torch", "triton"]) -> None:
        """Choose the kernels that compute the update of linear layers on a CUDA card: PyTorch's or Triton's.

        Triton's take one launch for a layer beside the base's own product. They run in float32, bfloat16 and float16,
        up to rank 128, also if Mid differs by example. Everything else runs as before: convolutions, quantised bases,
        dropout in training, torch.compile, a Left or Right that differs by example, an input on a CPU. What ran is
        `adapter.layers[path].kernel`. Triton's have no second derivative.

        Args:
            name: "torch", the default, or "triton".

        Raises:
            ValueError: Another name; triton is missing; or there is neither a CUDA card nor Triton's interpreter.

        Example:
            >>> import metalora
            >>> model = nn.Sequential(nn.Linear(4, 4))
            >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
            >>> adapter.use_kernels("torch")
            >>> adapter.uses_triton
            False
        """
        check_choice("kernels", name, ("torch", "triton"))
        if name == "triton":
            check_available()
        self.uses_triton = name == "triton"
        self._under_values = None  # these kernels read Mid as a matrix

    # ---- verbs -----------------------------------------------------------------------------------------------------
    # They import inside, since the modules of the verbs import this one.
    def merge(self, condition: Condition | None = None) -> None:
        """Add every Delta W to its base weight; see `metalora.merge`."""
        from metalora.adapters.merge import merge

        merge(self.model, condition)

    def unmerge(self, *, discard_changes: bool = False) -> None:
        """Restore the base weights that `merge` kept, bit for bit; see `metalora.unmerge`."""
        from metalora.adapters.merge import unmerge

        unmerge(self.model, discard_changes=discard_changes)

    def detach(self) -> None:
        """Put the original modules back, bit for bit; see `metalora.detach`."""
        from metalora.adapters.attach import detach

        detach(self.model)

    def save(
        self, path: str | Path, dtype: torch.dtype | None = None, *, extra_module: nn.Module | None = None
    ) -> None:
        """Write the adapter as one safetensors file; see `metalora.save`."""
        from metalora.io.adapter_file import save

        save(self.model, path, dtype, extra_module=extra_module)

    def swap(self, path: str | Path, **options: Any) -> None:
        """Replace the numbers by those of another file, in place; see `metalora.io.swap.swap`."""
        from metalora.io.swap import swap

        swap(self, path, **options)

    def sweep(self, **options: Any) -> SweepReport:
        """Truncate the factors to smaller ranks; the options are those of `metalora.sweep`."""
        from metalora.ranks.sweep import sweep

        return sweep(self.model, **options)

    def new_task(self, like: int | None = None) -> contextlib.AbstractContextManager[int]:
        """Add a task and train its slice alone, inside of the block; see `metalora.new_task`."""
        from metalora.adapters.new_task import new_task

        return new_task(self, like)

    def export_lora(
        self,
        folder: str | Path,
        condition: Condition | None = None,
        task: int | Literal["all"] | None = None,
        **limits: Any,
    ) -> list[Any]:
        """Write plain LoRA that PEFT loads; `limits` are those of `metalora.io.lora.export.export_lora`."""
        from metalora.io.lora.export import export_lora

        return export_lora(self, folder, condition, task, **limits)

    # ---- shown -----------------------------------------------------------------------------------------------------
    def description(self) -> dict[str, str]:
        """Return what `print` and a notebook show: method, targets, parameters, condition, state, what is skipped."""
        config = self.config
        source = "none (static)"
        if self.conditional:
            labelled = ", labelled" if config.condition.scope == "support" and config.condition.labelled else ""
            source = f"{', '.join(self.generated)} from {config.condition.source}, {config.condition.scope}{labelled}"
        if self.task_keys:
            source = f"{config.tasks} tasks" + (f"; {source}" if self.conditional else "")
        roles = dict.fromkeys(target.role or path for path, target in self.targets.items())
        names = ", ".join(list(roles)[:4]) + (", ..." if len(roles) > 4 else "")
        description = {
            "method": f"{self.method.name}, {' '.join(self.method.formula.split())}",
            "rank": str(config.rank),
            "targets": f"{len(self.targets)} ({names})",
            "parameters": f"{share_in_words(self.num_params(), self._frozen_size())} of the frozen network",
            **({"biases": f"{len(self.biases)} ({config.bias})"} if len(self.biases) else {}),
            "condition": source,
            "merged": "yes" if self.merged else "no",
        }
        if self.skipped:
            description["skipped"] = "; ".join(skipped_sentences(self.skipped))
        return description

    def _frozen_size(self) -> int:
        """Return how many numbers the network has without its adapters."""
        adapters = (module for module in self.model.modules() if isinstance(module, Adapter))
        own = {id(parameter) for adapter in (self, *adapters) for parameter in adapter.parameters()}
        return sum(parameter.numel() for parameter in self.model.parameters() if id(parameter) not in own)
