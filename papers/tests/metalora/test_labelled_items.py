"""Fixed episodes: the same for every method, balanced, and support and queries share no group."""

import pytest
import torch

from metalora_papers.metalora.labelled_items import (
    LabelledItems,
    Notion,
    balanced,
    parts_by_group,
    quantile_bins,
    two_sides,
)

GROUPS = torch.arange(200).repeat_interleave(3)


@pytest.fixture(scope="module")
def items():
    """200 groups of three items; "kind" belongs to a group, "place" to an item, "rare" has few items."""
    kind = Notion(GROUPS % 5, tuple("abcde"))
    place = Notion(torch.arange(600) % 3, ("x", "y", "z"))
    rare = Notion(torch.where(GROUPS < 90, GROUPS % 2, torch.where(GROUPS < 93, 2, -1)), ("even", "odd", "rare"))
    alone = Notion(torch.where(GROUPS < 50, 0, -1), ("only", "none"))
    everything = {name: torch.arange(600) for name in ("train", "val", "test")}
    notions = {"kind": kind, "place": place, "rare": rare, "alone": alone}
    return LabelledItems("items", torch.zeros(600, 2, 2, 3, dtype=torch.uint8), notions, GROUPS, everything, (), ())


@pytest.mark.parametrize("column", ["kind", "place", "rare"])
def test_an_episode(items, column):
    episode = items.test_episode(column, 3, 0, support=60, queries=30)
    codes = items.notions[column].codes
    assert not set(GROUPS[episode.support].tolist()) & set(GROUPS[episode.query].tolist())
    for rows, labels in (episode[:2], episode[2:]):
        assert len(rows.unique()) == len(rows)
        # One class number for each class of the column, consecutive from 0.
        pairs = set(zip(codes[rows].tolist(), labels.tolist(), strict=True))
        assert len(pairs) == len({label for _, label in pairs}) and {label for _, label in pairs} == set(
            range(len(pairs))
        )
    assert episode.support_labels.bincount().min() >= 3
    if column != "rare":
        assert len(episode.support) == 60 and len(episode.query) == 30
        counts = episode.support_labels.bincount()
        assert counts.max() - counts.min() <= 1


def test_episodes_are_fixed(items):
    first, same, number, seed = (
        items.test_episode(*arguments) for arguments in (("kind", 1, 0), ("kind", 1, 0), ("kind", 2, 0), ("kind", 1, 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first.support, number.support) and not torch.equal(first.support, seed.support)
    assert first.support[:5].tolist() == [51, 9, 346, 312, 243]  # on every machine


def test_bad_episodes(items):
    with pytest.raises(ValueError, match="unknown column 'knid'; did you mean 'kind'"):
        items.test_episode("knid", 0, 0)
    with pytest.raises(ValueError, match="unknown part 'tset'; did you mean 'test'"):
        items.test_episode("kind", 0, 0, part="tset")
    with pytest.raises(ValueError, match="items, column 'alone': expected items of two classes, found 1"):
        items.test_episode("alone", 0, 0)


def test_two_sides_halve_the_groups_of_every_class():
    generator = torch.Generator().manual_seed(0)
    codes = torch.tensor([0] * 8 + [1] * 3 + [2] * 1)
    first, second = two_sides(torch.arange(12), codes, generator)
    assert codes[first].bincount(minlength=3).tolist() == [4, 2, 0]
    assert sorted(first.tolist() + second.tolist()) == list(range(12))


def test_balanced_uses_up_small_classes():
    codes = torch.tensor([0] * 50 + [1] * 4 + [2] * 50)
    rows = balanced(codes, 44, torch.Generator().manual_seed(0))
    assert codes[rows].bincount().tolist() == [20, 4, 20]
    assert len(balanced(codes, 500, torch.Generator())) == 104


def test_parts_share_no_group_and_keep_the_shares_of_strata():
    strata = (GROUPS >= 150).long()
    parts = parts_by_group(GROUPS, strata, (0.6, 0.15, 0.25), seed=1)
    groups = {name: set(GROUPS[rows].tolist()) for name, rows in parts.items()}
    assert not groups["train"] & groups["val"] and not groups["test"] & (groups["train"] | groups["val"])
    assert sum(map(len, groups.values())) == 200
    for stratum, count in ((0, 150), (1, 50)):
        sizes = [len(GROUPS[rows][strata[rows] == stratum].unique()) for rows in parts.values()]
        assert sizes == pytest.approx([0.6 * count, 0.15 * count, 0.25 * count], abs=1)


def test_quantile_bins():
    assert quantile_bins(torch.arange(12.0), 3).tolist() == [0] * 4 + [1] * 4 + [2] * 4
