"""MetaLoRA on images: an adapter made from labelled examples tells what "similar" means, a 5-NN vote follows it.

The digits of scikit-learn in six colours; the frozen backbone knows digits only. Trained on two notions (digit and
colour), the adapter takes either of them from 60 labelled examples, without an id and without a gradient step.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.models.resnet import BasicBlock, ResNet

import metalora
from metalora.knn import knn_accuracy
from metalora.training.losses import matching_loss

NOTIONS = ("digit", "colour")
COLOURS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]).float()
IMAGES = F.interpolate(torch.tensor(load_digits().images)[:, None].float() / 16, size=32)  # (n, 1, 32, 32)
DIGITS = torch.tensor(load_digits().target)
TRAIN, TEST = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(0)).split(1400)


def draw(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Draw images (count, 3, 32, 32), and their labels (count,) under each notion."""
    chosen, colour = rows[torch.randperm(len(rows))[:count]], torch.arange(count) % len(COLOURS)
    return IMAGES[chosen] * COLOURS[colour][:, :, None, None], {"digit": DIGITS[chosen], "colour": colour}


def main(steps: int = 300, pretrain_steps: int = 200) -> dict[str, float]:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1, 1), 10, channels=(16, 32, 40, 56), stem_type="deep", stem_width=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(pretrain_steps):
        images, labels = draw(TRAIN, 120)
        F.cross_entropy(model(images), labels["digit"]).backward()
        optimizer.step(), optimizer.zero_grad()
    model.eval().reset_classifier(0)  # from here on it is frozen
    condition = metalora.ConditionConfig(scope="support", hidden=16)
    adapter = metalora.attach(model, metalora.AdapterConfig("metalora-cp", rank=9, condition=condition, clip_rank=True))
    adapter.calibrate([draw(TRAIN, 120)[0] for _ in range(8)])
    optimizer = torch.optim.AdamW(adapter.parameter_groups(lr=5e-3))
    for step in range(steps):
        images, labels = draw(TRAIN, 120)  # 60 examples and 60 queries
        support_y, query_y = labels[NOTIONS[step % 2]].split(60)
        features = model(images, condition=adapter.condition(images[:60], support_y))
        matching_loss(features[:60], support_y, features[60:], query_y).backward()
        optimizer.step(), optimizer.zero_grad()
    metalora.save(model, "notions.safetensors")
    (images, labels), accuracies = draw(TEST, 260), {}
    for notion in NOTIONS:
        support_y, query_y = labels[notion].split((60, 200))
        with torch.no_grad(), adapter.using(adapter.condition(images[:60], support_y)):
            features = model(images)
        accuracies[notion] = knn_accuracy(features[:60], support_y, features[60:], query_y, 5)
        print(f"{notion:>6}: {accuracies[notion]:.1%} of 200 new images by 60 examples")
    return accuracies


if __name__ == "__main__":
    main()
