"""Try an installed metalora: every module is imported, unless an extra is missing, and an adapter is trained and saved.

`.github/workflows/release.yml` runs it where the wheel is installed with its core dependencies alone.
"""

from __future__ import annotations

import pkgutil
import tempfile
from importlib import import_module
from pathlib import Path

import torch

import metalora


def import_everything() -> set[str]:
    """Import every module; return the messages about missing extras."""
    missing = set()
    for module in pkgutil.walk_packages(metalora.__path__, "metalora.", onerror=lambda name: None):
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:
            assert "pip install" in str(error), error
            missing.add(str(error))
    return missing


def train_and_save() -> None:
    """Attach an adapter, train it for a step, save it, and load it with the same outputs."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    inputs = torch.randn(4, 8)
    adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets=("0",)))
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    model(inputs).square().mean().backward()
    optimiser.step()
    expected = model(inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        metalora.save(model, path)
        metalora.detach(model)
        metalora.load(model, path)
    assert torch.equal(model(inputs), expected)


if __name__ == "__main__":
    print(metalora.__version__, metalora.__file__)
    print(*sorted(import_everything()), sep="\n")
    train_and_save()
