"""A learner's suite on points that the tests make, with a network of three layers."""

import torch
from torch import nn

from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora.learner import ArrayPreprocessor, Backbone
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.learner.item_data import ItemData
from metalora_papers.metalora.labelled_items import LabelledItems, Notion

GROUPS = torch.arange(240) // 2
LORA = AdapterConfig("lora", 2, targets=("0", "2"), condition=ConditionConfig(scope="constant"))
CP = AdapterConfig("metalora-cp", 2, targets=("0", "2"), condition=ConditionConfig(scope="support", hidden=4))
RUN = LearnerRunConfig(
    suite="learner-texts", method="lora", train=TrainConfig(steps=2, lr=1e-3, store="float32"), support=24, query=16,
    label_sets=2, test_support=30, test_query=20, test_episodes=2,
)  # fmt: skip


def item_data(run=RUN):
    """240 points in groups of two: "left" and "high" are trained, "near" is not."""
    points = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    notions = {
        name: Notion(values.long(), ("no", "yes"))
        for name, values in (("left", points[:, 0] < 0), ("high", points[:, 1] > 0), ("near", points[:, 2] < 0.2))
    }
    part_of = GROUPS % 3
    parts = {name: (part_of == k).nonzero()[:, 0] for k, name in enumerate(("train", "val", "test"))}
    items = Points("points", points, notions, GROUPS, parts, ("left", "high"), ("near",))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return ItemData(items, Backbone(network.requires_grad_(False).eval(), ArrayPreprocessor()), run)


class Points(LabelledItems):
    """Items that are arrays, not pictures."""

    def _inputs(self, rows):
        return self.inputs[rows]
