"""The adapter: owner of all factors of one method on one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning import Condition, Conditioner
from metalora.adapters.features import Inputs, Recorder, run
from metalora.adapters.targets import Target
from metalora.config import AdapterConfig, nearest
from metalora.methods.method import Method


def factor_key(target: str, factor: str) -> str:
    """The public name of a factor that a target owns: "layer1.0.conv1.A"."""
    return f"{target}.{factor}"


class Adapter(nn.Module):
    """Owns the factors and the mapping net; adapted layers hold an unregistered reference to it.

    Made by `metalora.attach`. `factors` maps "target.factor" to its Parameter, modes in the order of the method's spec.
    """

    def __init__(self, config: AdapterConfig, method: Method, targets: list[Target], factors: Mapping[str, Tensor]):
        super().__init__()
        self.config, self.method = config, method
        self.targets = {target.path: target for target in targets}
        self.generated = tuple(method.generated if config.generated is None else config.generated)
        self._keys = {(t.path, f): factor_key(t.path, f) for t in targets for f in method.factors}
        self._bank = nn.ParameterDict({_slot(key): nn.Parameter(value) for key, value in factors.items()})
        self.rank_dropout = nn.Dropout(config.dropout)
        self.conditioner: Conditioner | None = None
        self.extractor: tuple[nn.Module, ...] = ()  # a tuple: frozen, not ours to save
        self.recorder = Recorder()
        self.enabled = True
        self.weight_first = True  # let layers form W + Delta W where the cost model says so; False: always the cut
        self.active: Mapping[str, Tensor] | None = None  # generated factors; set only while a forward runs
        self.held: Mapping[str, Tensor] | None = None  # those of the innermost `using`
        self.fixed: Condition | None = None
        self.layers: dict[str, nn.Module] = {}
        self.model: tuple[nn.Module, ...] = ()
        self.hooks: list[Any] = []
        self.required_grad: dict[str, bool] = {}
        self.frozen_norms: list[nn.Module] = []

    # ---- what the adapter holds ------------------------------------------------------------------------------------
    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """Factor name -> Parameter ("layer1.0.conv1.A"); a generated factor's entry is its condition-free value c0."""
        return {key: self._bank[_slot(key)] for key in self._keys.values()}

    @property
    def scale(self) -> float:
        """alpha / r (or alpha, as the method declares); one when alpha is None."""
        alpha = self.config.alpha
        if alpha is None:
            return 1.0
        rank = self.config.rank if isinstance(self.config.rank, int) else max(self.config.rank.values())
        return alpha / rank if self.method.scale == "alpha/r" else alpha

    @property
    def conditional(self) -> bool:
        """Whether a factor is made by a mapping net, so that a forward needs a condition."""
        return self.conditioner is not None

    def num_params(self) -> int:
        """Trainable numbers: the factors of every target and the mapping net."""
        return sum(p.numel() for p in self.parameters())

    def parameter_groups(self, lr: float, mapping_lr_ratio: float = 0.2) -> list[dict[str, Any]]:
        """Optimiser groups: the factors at `lr`, the mapping net at `mapping_lr_ratio` of it."""
        groups = [{"params": list(self._bank.parameters()), "lr": lr}]
        if self.conditioner is not None:
            groups.append({"params": list(self.conditioner.parameters()), "lr": lr * mapping_lr_ratio})
        return groups

    # ---- reading factors -------------------------------------------------------------------------------------------
    def read(self, target: Target, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The factors of one target; generated ones from `values`, else from the active condition, (n, *shape)."""
        values = self.active if values is None else values
        found = {}
        for factor in self.method.factors:
            key = self._keys[target.path, factor]
            generated = self.conditional and factor in self.generated
            if generated and values is None:
                raise RuntimeError(
                    f"factor {key!r} is generated and no condition is active: call the model itself, pass "
                    "condition=..., enter adapter.using(condition), or checkpoint with metalora.checkpoint"
                )
            value = values[key] if generated else self._bank[_slot(key)]
            found[factor] = value.softmax(-1) if factor in self.method.gates else value
        return found

    def batch_of(self, target: Target, batch: int) -> int:
        """The number of conditions at a target (1 or the layer's batch); ValueError if it fits neither."""
        if not self.conditional:
            return 1
        n = self.count(target)
        if n not in (1, batch):
            raise ValueError(f"target {target.path!r}: the condition is for {n} examples, the layer got {batch}")
        return n

    def count(self, target: Target) -> int:
        """The number of conditions that are active at a target."""
        return len(self.active[self._keys[target.path, self.generated[0]]])

    def delta(self, target: str, condition: Condition | None = None) -> Tensor:
        """Dense Delta W of a target in the base weight's layout; (n, ...) for a condition of n > 1 examples."""
        if target not in self.layers:
            raise ValueError(f"unknown target {target!r}{nearest(target, self.layers)}")
        return self.layers[target].delta(self._values(condition, "delta"))

    def _values(self, condition: Condition | None, what: str) -> dict[str, Tensor] | None:
        if condition is None and self.fixed is not None:
            condition = self.fixed
        if self.conditional and condition is None:
            raise ValueError(
                f"{what}: {self.method.name} makes {', '.join(self.generated)} from a condition, pass condition=... "
                "(adapter.condition(inputs) makes one, .mean() of it is one for all)"
            )
        return None if condition is None else condition.values

    # ---- conditions ------------------------------------------------------------------------------------------------
    def condition(self, inputs: Inputs, labels: Tensor | None = None) -> Condition:
        """Make a condition from inputs: one per example, or one for a (labelled) support set, as the config says.

        inputs: what the model takes (for source=tensor: the features, (n, d)); labels: (n,) integers.
        Differentiable with respect to the mapping net. ValueError for a static adapter or features that are not finite.
        """
        if self.conditioner is None:
            raise ValueError(f"{self.method.name}: no factor is generated, so there is no condition to make")
        return self.conditioner(self.features(inputs), labels, self._centre())

    def neutral(self) -> Condition:
        """The condition c0 that no feature has changed."""
        assert self.conditioner is not None
        centre = self._centre()
        device = next(iter(centre.values())).device
        features = torch.zeros(1, self.conditioner.feature_size, device=device)
        return Condition({key: value[None] for key, value in centre.items()}, features, features.sum())

    def _centre(self) -> dict[str, Tensor]:
        return {key: self._bank[_slot(key)] for key in self.conditioner.shapes}

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        """The raw features of inputs under the frozen network, (n, d) float32; no gradient, adapter off, eval mode."""
        if self.config.condition.source == "tensor":
            return inputs.float()
        network = self.extractor[0] if self.extractor else self.model[0]
        training = [module for module in network.modules() if module.training]
        was_enabled, self.enabled, self.recorder.active = self.enabled, False, True
        try:
            for module in training:
                module.training = False
            run(network, inputs)
            return self.recorder.take()
        finally:
            self.enabled, self.recorder.active = was_enabled, False
            for module in training:
                module.training = True

    def calibrate(self, inputs: Inputs | Iterable[Inputs]) -> None:
        """Freeze the mean and standard deviation that features are standardised by, from training inputs."""
        if self.conditioner is None:
            return
        one = isinstance(inputs, (Tensor, Mapping)) or hasattr(inputs, "keys")
        self.conditioner.calibrate(torch.cat([self.features(batch) for batch in ([inputs] if one else inputs)]))

    @contextlib.contextmanager
    def using(self, condition: Condition | Mapping[str, Tensor]) -> Iterator[None]:
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
        """Forward pre-hook of the model: take the explicit condition, or make one from the inputs."""
        for norm in self.frozen_norms:
            norm.training = False
        condition = kwargs.pop("condition", None)
        if not self.enabled or not self.conditional or self.merged:
            return args, kwargs
        if condition is not None:
            self.active = condition.values
        elif self.held is not None:
            self.active = self.held
        elif self.fixed is not None:
            self.active = self.fixed.values
        else:
            self.active = self._from_inputs(args, kwargs)
        return args, kwargs

    def _from_inputs(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        config = self.config.condition
        if config.source == "stem":
            self.recorder.active = True  # the stem's hook replaces c0 as soon as it has run
            return self.neutral().values
        if config.scope == "support" or config.source == "tensor":
            raise ValueError(
                f"this adapter's condition comes from {'a support set' if config.scope == 'support' else 'a tensor'}: "
                "make it with adapter.condition(...) and call model(..., condition=condition)"
            )
        inputs: Inputs = kwargs if not args else args[0] if len(args) == 1 and not kwargs else args
        return self.condition(inputs).values

    def after_stem(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the stem: make the condition from its output, in the same pass."""
        if self.recorder.active and self.recorder.seen and self.enabled:
            self.recorder.active = False
            self.active = self.conditioner(self.recorder.take(), None, self._centre()).values

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: no condition outlives its forward."""
        if self.enabled:
            self.active, self.recorder.active = self.held, False

    @property
    def merged(self) -> bool:
        """Whether the base weights hold base + Delta W."""
        return any(layer.original is not None for layer in self.layers.values())


def _slot(key: str) -> str:
    return key.replace(".", "/")
