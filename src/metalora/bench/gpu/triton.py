"""The Triton kernels beside PyTorch's: laws, launches and time of training steps, and many tenants in a batch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from metalora.adapters.attach import adapter_of
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.triton_kernels.available import unavailable
from metalora.bench.cases import FLOOR, PEFT, Case, Inputs
from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.launches import step_counts
from metalora.bench.gpu.laws import CASES, Kernels, law_row, relative_error
from metalora.bench.gpu.many_tenants import MANY, ONE, adapted_for_tenants, run_model, timed
from metalora.bench.gpu.measure import build_all, measure
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.gpu.timed import build_adapted
from metalora.bench.phases import training_phases

TRITON = ", triton"  # the end of the name of a case
LAWS = ("lora", "metatt-4d", "moe-lora", "metalora-cp", "metalora-tr")


def triton_section(name: str, seconds: float, steps: Setup, tenants: Setup, rank: int = 8) -> Section:
    """A section that checks and times the Triton kernels; it does not run where they cannot.

    Args:
        name: Name of the section.
        seconds: Its time budget, in which the kernels are also compiled.
        steps: The model and the adapters whose training steps are timed.
        tenants: The model and the batch of inference, a tenant for each row.
        rank: Rank of the generated adapter of the tenants.
    """
    config = steps.described() | {"laws": LAWS, "tenants_batch": tenants.bench.batch, "tenants_rank": rank}
    return Section(name, seconds, config, partial(_run, steps, tenants, rank))


def _run(steps: Setup, tenants: Setup, rank: int, budget: Budget) -> Results:
    reason = unavailable()
    if reason is not None:
        return {"skipped": f"not run: {reason}"}
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    laws = [law_row(case, "linear", dtype, budget, "triton") for case in CASES if case.method in LAWS]
    failed = [f"{row['method']} {row['layer']}" for row in laws if not row["passed"]]
    return {"failed": failed, "laws": laws} | _steps(steps, budget) | {"serving": _tenants(tenants, rank, budget)}


# ---- training steps --------------------------------------------------------------------------------------------------
def _steps(setup: Setup, budget: Budget) -> Results:
    base, inputs = base_and_inputs(setup)
    own = [name for name in setup.ranks if not name.startswith(PEFT)]
    names = [FLOOR, *setup.ranks, *(name + TRITON for name in own)]
    counts: dict[str, Results] = {}
    cases, errors = build_all(names, partial(_build_and_count, setup, base, inputs, counts), budget)
    runs = {name: partial(training_phases, case) for name, case in cases.items()}
    measured = measure(runs, setup.bench.rounds, budget)
    measured.errors.update(errors)
    return {"cases": [row | counts.get(row["case"], {}) for row in measured.rows()]}


def _build_and_count(setup: Setup, base: nn.Module, inputs: Inputs, counts: dict[str, Results], name: str) -> Case:
    """Build a case and add its launches to the counts; its first step compiles the kernels."""
    case = build_adapted(setup, base, inputs, name.removesuffix(TRITON))
    if name.endswith(TRITON):
        _use_kernels(case.model, "triton")
    counts[name] = step_counts(case)
    return case


def _use_kernels(model: nn.Module, name: Kernels) -> None:
    adapter = adapter_of(model)
    assert adapter is not None
    adapter.use_kernels(name)


# ---- many tenants ----------------------------------------------------------------------------------------------------
def _tenants(setup: Setup, rank: int, budget: Budget) -> Results:
    base, inputs = base_and_inputs(setup)
    base.eval()
    model, condition = adapted_for_tenants(setup, base, rank, len(next(iter(inputs.values()))))
    runs = {FLOOR: partial(run_model, base, inputs)}
    for name, chosen in ((ONE, condition[0]), (MANY, condition)):
        runs[name] = partial(_run_by, "torch", model, inputs, chosen)
        runs[name + TRITON] = partial(_run_by, "triton", model, inputs, chosen)
    measured = measure({name: partial(timed, run) for name, run in runs.items()}, setup.bench.rounds, budget)
    return {
        "tenants": len(condition),
        "error_against_torch": relative_error(runs[MANY + TRITON](), runs[MANY]()),
        "cases": measured.rows(reference=ONE),
    }


def _run_by(kernels: Kernels, model: nn.Module, inputs: Inputs, condition: Condition) -> Tensor:
    """Run inference by one of the two kinds of kernels."""
    _use_kernels(model, kernels)
    return run_model(model, inputs, condition=condition)
