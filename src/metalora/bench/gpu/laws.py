"""A sample of the laws on the device, in float32, bfloat16 and float16.

The reference is computed in float64 on the CPU: the output of the base with the weight W + Delta W, where Delta W is
the dense one of a float64 copy of the adapter. The suite in tests/laws compares that Delta W with independent oracles.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.merge import merge, unmerge
from metalora.bench.device import bench_device
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import describe_error
from metalora.config import AdapterConfig, ConditionConfig

EXAMPLES, FEATURES = 4, 7
# Largest error of an output, relative to the norm of the output: rounding of 24, 8 and 11 bits, with a margin.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYERS = ("linear", "conv2d")
Kernels = Literal["torch", "triton"]


@dataclass(frozen=True)
class LawCase:
    """A method under test.

    Attributes:
        method: Name of the method.
        rank: Its rank.
        generated: Factors that a mapping net generates from features, different for each example.
        tasks: Number of tasks; with more than one, each example has a task of its own.
    """

    method: str
    rank: int
    generated: tuple[str, ...] = ()
    tasks: int = 1

    @property
    def differs_by_example(self) -> bool:
        """Whether the factors of two examples of a batch may differ."""
        return bool(self.generated) or self.tasks > 1

    def config(self) -> AdapterConfig:
        """The adapter on the single layer of the model under test."""
        condition = ConditionConfig(
            source="tensor", feature_size=FEATURES, hidden=6, scope="sample" if self.generated else "constant"
        )
        return AdapterConfig(
            self.method,
            self.rank,
            targets=("0",),
            tasks=self.tasks,
            experts=2,
            condition=condition,
            generated=self.generated or None,
        )


CASES = (
    LawCase("lora", 8),
    LawCase("loha", 4),
    LawCase("lokr", 4),
    LawCase("vera", 16),
    LawCase("lotr", 8),
    LawCase("metatt-4d", 8),
    LawCase("metatt-4+1d", 8, tasks=3),
    LawCase("tenslora-qkv-depth", 4),
    LawCase("moe-lora", 8, generated=("g",)),
    LawCase("metalora-cp", 8, generated=("c",)),
    LawCase("metalora-tr", 3, generated=("C",)),
)


def law_row(
    case: LawCase, layer: str, dtype: torch.dtype, budget: Budget, kernels: Kernels = "torch"
) -> dict[str, Any]:
    """Check one method on one layer of the benchmark's device; an error becomes a part of the row.

    Args:
        case: The method.
        layer: "linear" or "conv2d".
        dtype: Data type of the base and of the activations.
        budget: The time budget.
        kernels: What computes the update.

    Raises:
        OutOfTime: The time budget is used up.
    """
    budget.check()
    row: dict[str, Any] = {"method": case.method, "layer": layer}
    try:
        return row | check_laws(case, layer, bench_device(), dtype, kernels)
    except OutOfTime:
        raise
    except Exception as error:
        return row | {"passed": False, "error": describe_error(error)}


def check_laws(
    case: LawCase, layer: str, device: torch.device, dtype: torch.dtype, kernels: Kernels = "torch"
) -> dict[str, Any]:
    """Check one method on one layer.

    Args:
        case: The method.
        layer: "linear" or "conv2d".
        device: The device.
        dtype: Data type of the base and of the activations.
        kernels: What computes the update; Triton's never as W + Delta W.

    Returns:
        "starts_as_base" and "restored_by_unmerge" (bit for bit), "gradients" (all learned factors have a gradient
        that is finite and not zero, and no weight of the base has one), the relative errors "forward_error",
        "merge_error" and "batch_error" (a mixed batch against each example alone), "change" (what the adapter changes,
        on the same scale), and "passed".
    """
    torch.manual_seed(0)
    base = _base_layer(layer).to(device, dtype).requires_grad_(False)
    x = _inputs(layer).to(device, dtype)
    model = nn.Sequential(copy.deepcopy(base))
    adapter = attach(model, case.config())
    adapter.use_kernels(kernels)
    adapter.weight_first = kernels == "torch"
    condition = _condition(case, adapter, device)
    results: dict[str, Any] = {}
    with torch.no_grad():
        # A method starts with Delta W = 0, so that nothing may change, not even by rounding.
        results["starts_as_base"] = torch.equal(_forward(model, x, condition), base(x))
        _randomise(adapter)
    # The condition holds values of the factors, which have changed.
    condition = _condition(case, adapter, device)
    results["gradients"] = _gradients_reach_factors(model, adapter, x, condition)
    with torch.no_grad():
        output = _forward(model, x, condition)
        alone = [_forward(model, x[i : i + 1], _example(condition, i)) for i in range(EXAMPLES)]
        expected = [_expected(base, model, x[i : i + 1], _example(condition, i)) for i in range(EXAMPLES)]
        results["change"] = relative_error(base(x), torch.cat(expected))
        results["forward_error"] = relative_error(output, torch.cat(expected))
        results["batch_error"] = relative_error(output, torch.cat(alone))
        # A merged model has one Delta W for all examples: that of the first one here.
        merge(model, _example(condition, 0))
        results["merge_error"] = relative_error(model(x[:1]), expected[0])
        unmerge(model)
        weight = cast(Any, adapter.layers["0"]).base.weight
        results["restored_by_unmerge"] = torch.equal(weight, base.weight)
    results["passed"] = _passed(results, TOLERANCES[dtype])
    return results


def _passed(results: Mapping[str, Any], tolerance: float) -> bool:
    errors = [value for name, value in results.items() if name.endswith("_error")]
    flags = [results["starts_as_base"], results["gradients"], results["restored_by_unmerge"]]
    is_tested = results["change"] > 10 * tolerance  # a smaller Delta W could be wrong and nobody would see it
    return is_tested and all(flags) and all(error <= tolerance for error in errors)


def _base_layer(layer: str) -> nn.Linear | nn.Conv2d:
    return nn.Linear(96, 64) if layer == "linear" else nn.Conv2d(16, 32, 3, stride=2, padding=1)


def _inputs(layer: str) -> Tensor:
    """(examples, tokens, 96) or (examples, 16, height, width); more positions than the weight has rows."""
    return torch.randn(EXAMPLES, 40, 96) if layer == "linear" else torch.randn(EXAMPLES, 16, 21, 19)


def _condition(case: LawCase, adapter: Adapter, device: torch.device) -> Condition | None:
    if case.tasks > 1:
        return adapter.task(torch.arange(EXAMPLES, device=device) % case.tasks)
    if case.generated:
        features = torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))
        return adapter.condition(features.to(device))
    return None


def _example(condition: Condition | None, index: int) -> Condition | None:
    return None if condition is None else condition[index : index + 1]


def _forward(model: nn.Module, x: Tensor, condition: Condition | None) -> Tensor:
    return cast(Tensor, model(x) if condition is None else model(x, condition=condition))


def _randomise(adapter: Adapter) -> None:
    """Give all parameters values at which Delta W is about as large as W."""
    generator = torch.Generator().manual_seed(2)  # of the CPU, so that they are the same on every device
    for parameter in adapter.parameters():
        parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))


def _gradients_reach_factors(model: nn.Module, adapter: Adapter, x: Tensor, condition: Condition | None) -> bool:
    """Whether a backward gives a gradient to all learned factors and to nothing of the base."""
    output = _forward(model, x, condition).float()
    torch.autograd.backward(output.square().mean())
    for factor in adapter.learned.values():
        if factor.grad is None or not torch.isfinite(factor.grad).all() or not factor.grad.any():
            return False
    base_weight = cast(Any, adapter.layers["0"]).base.weight
    model.zero_grad()
    return base_weight.grad is None


def _expected(base: nn.Linear | nn.Conv2d, model: nn.Module, x: Tensor, condition: Condition | None) -> Tensor:
    """The output for one example, from the dense W + Delta W in float64 on the CPU."""
    reference = copy.deepcopy(model).cpu().double()
    adapter = cast(Adapter, adapter_of(reference))
    delta = adapter.delta("0", _in_float64(condition))  # (1, *weight) or (*weight): of one example in both cases
    weight = base.weight.cpu().double() + delta.reshape(base.weight.shape)
    bias = None if base.bias is None else base.bias.cpu().double()
    x = x.cpu().double()
    if isinstance(base, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, stride=cast(Any, base.stride), padding=cast(Any, base.padding))


def _in_float64(condition: Condition | None) -> Condition | None:
    if condition is None:
        return None
    values = {name: value.detach().cpu().double() for name, value in condition.values.items()}
    return replace(condition.to("cpu"), values=values)


def relative_error(output: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of the expected value, in float64 on the CPU.

    Args:
        output: The output, of any shape.
        expected: The expected value, of the same shape.
    """
    difference = output.cpu().double() - expected.cpu().double()
    return float(difference.norm() / expected.cpu().double().norm())
