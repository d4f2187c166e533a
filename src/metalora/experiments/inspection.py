"""What an adapter would be, before it is made."""

from __future__ import annotations

from typing import Any

from torch import nn

from metalora.adapters.attach import bind_sizes, count_params, plan, target_network
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.methods.registry import get_method


def describe(model: nn.Module, config: AdapterConfig) -> dict[str, Any]:
    """Targets, the planned contraction of each, parameters (without the mapping net) and bytes on disk in float32."""
    method = get_method(config.method)
    found = find_targets(model, config.targets, config.exclude)
    targets = [bind_sizes(target, config, method) for target in found]
    rows = []
    for target in targets:
        cut = plan(method, target, ())
        rows.append(
            {
                "target": target.path,
                "shape": " ".join(f"{mode}={size}" for mode, size in target.sizes.items()),
                "left": repr(cut.kernel),
                "mid": repr(cut.mix) if cut.mid else "identity",
                "right": repr(cut.expand),
                "k": cut.rank,
                "parameters": target_network(method, target).num_params(target.sizes),
            }
        )
    total = count_params(config, found)
    return {
        "method": method.name,
        "formula": " ".join(method.formula.split()),
        "targets": rows,
        "parameters": total,
        "bytes": 4 * total + 90 * len(method.factors) * len(rows) + 2000,
    }
