"""PyTorch Lightning: its Trainer trains the adapter of a frozen network, which is saved as a small file.

`pip install lightning`. A small network knows the digits 0 to 4 of scikit-learn only; an adapter teaches it all ten.
"""

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metalora

DIGITS = load_digits()
IMAGES, LABELS = torch.tensor(DIGITS.data).float() / 16, torch.tensor(DIGITS.target)


class Adapted(lightning.LightningModule):
    """A network and its adapter: only `adapter.parameter_groups` go to the optimiser."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        config = metalora.AdapterConfig("lora", rank=4, targets=("0", "2"))
        self.adapter = [metalora.attach(network, config)]  # in a list: its numbers are in the network already

    def training_step(self, batch: tuple, number: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter[0].parameter_groups(lr=3e-2))


def accuracy(network: nn.Module, rows: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(IMAGES[rows]).argmax(1) == LABELS[rows]).float().mean())


def main(steps: int = 150, pretrain_steps: int = 150) -> dict[str, float]:
    lightning.seed_everything(0, verbose=False)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train, test = torch.randperm(len(IMAGES)).split((1400, len(IMAGES) - 1400))
    optimizer, known = torch.optim.AdamW(network.parameters(), lr=3e-3), train[LABELS[train] < 5]
    for _ in range(pretrain_steps):
        F.cross_entropy(network(IMAGES[known]), LABELS[known]).backward()
        optimizer.step(), optimizer.zero_grad()
    scores = {"before": accuracy(network, test)}
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", **quiet)
    trainer.fit(Adapted(network), DataLoader(TensorDataset(IMAGES[train], LABELS[train]), batch_size=64, shuffle=True))
    scores["after"] = accuracy(network.eval(), test)
    metalora.save(network, "digits.safetensors")
    print(", ".join(f"accuracy {name} {score:.1%}" for name, score in scores.items()))
    return scores


if __name__ == "__main__":
    main()
