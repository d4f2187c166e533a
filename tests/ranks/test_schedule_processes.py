"""Ranks that fall in two processes that Accelerate counts: their gradients are averaged, and they agree."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalora import AdapterConfig, attach
from metalora.config import RankScheduleConfig, TrainConfig
from metalora.training.loop import fit
from support.fresh_process import run_together

pytest.importorskip("accelerate")
CONFIG = TrainConfig(steps=8, lr=2e-2, rank_schedule=RankScheduleConfig(steps=(3, 6), ranks=(3, 2)))


class Network(nn.Module):
    """Two layers with a query and a value, and a head of two classes."""

    def __init__(self):
        super().__init__()
        blocks = [nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)}) for _ in range(2)]
        self.layers, self.head = nn.ModuleList(blocks), nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["value"](torch.tanh(layer["query"](x)))
        return self.head(x)


def trained(accumulate=1):
    """The losses and the factors after a training."""
    torch.manual_seed(0)
    model = Network().eval()
    adapter = attach(model, AdapterConfig("metatt-4d", 4, alpha=2.0, targets="query,value", init="ze-no-no-no"))

    def step_loss(k):
        x = torch.randn(8, 8, generator=torch.Generator().manual_seed(k % 4))
        return F.cross_entropy(model(x), (x[:, 0] > 0).long())

    losses = fit(model, adapter, step_loss, replace(CONFIG, accumulate=accumulate))
    assert set(adapter.config.rank.values()) == {2}
    return losses, {key: value.detach().clone() for key, value in adapter.factors.items()}


def test_two_processes_average_their_gradients_and_agree(tmp_path):
    shared = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getpid() % 20000))
    shared |= dict(ACCELERATE_USE_CPU="true")
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    ended = run_together(__file__, [[tmp_path]] * 2, environments)
    assert [process.returncode for process in ended] == [0, 0], ended
    (first_losses, first), (second_losses, second) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first_losses == second_losses
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    for key, value in trained(accumulate=2)[1].items():
        torch.testing.assert_close(value, first[key], rtol=1e-4, atol=1e-5)  # sums of float32 in another order


if __name__ == "__main__":
    own_rank = int(os.environ["RANK"])
    torch.save(trained(), Path(sys.argv[1]) / str(own_rank))
    torch.distributed.destroy_process_group()
