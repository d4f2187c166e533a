"""The work of `metalora doctor`: build a model without weights, and check an adapter on it."""

from __future__ import annotations

from metalora.checkup import CheckReport, check
from metalora.checkup.check import LARGEST
from metalora.checkup.hosts import config_in_peft
from metalora.config import AdapterConfig
from metalora.zoo import load_model


def check_model(name: str, config: AdapterConfig, peft: bool) -> CheckReport:
    """Check an adapter on a model by name, with random weights; a large model is built without numbers.

    Args:
        name: Name of the model, as `load_model` takes it.
        config: The adapter.
        peft: Put it in with PEFT.

    Raises:
        ValueError: An unknown model, or what `metalora.attach` refuses.
    """
    model = load_model(name, weights=False)
    parameters = list(model.parameters())
    if any(p.is_meta for p in parameters) and sum(p.numel() for p in parameters) <= LARGEST:
        model = load_model(name, weights=False, device="cpu")
    return check(model, config_in_peft(model, config) if peft else config)
