"""Suite attributes: seeded, uniform, disjoint, and every attribute visible."""

import pytest
import torch

from metalora_papers.metalora.attributes import DEFAULT_ATTRIBUTES, VALUE_COUNTS, AttributeImages

EXTRA_ATTRIBUTES = tuple(name for name in VALUE_COUNTS if name not in DEFAULT_ATTRIBUTES)


@pytest.fixture(scope="module")
def suite():
    return AttributeImages("mnist-5k", attributes=DEFAULT_ATTRIBUTES + EXTRA_ATTRIBUTES)


@pytest.mark.parametrize("size", [28, 32, 48])
def test_shapes_ranges_and_seeds(size):
    suite = AttributeImages("digits", size=size)
    batch, again, other = (suite.batch("train", 20, seed) for seed in (3, 3, 4))
    assert batch.images.shape == (20, 3, size, size) and batch.images.dtype == torch.float32
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert tuple(batch.values) == DEFAULT_ATTRIBUTES
    assert torch.equal(batch.images, again.images) and torch.equal(batch.ids, again.ids)
    assert not torch.equal(batch.images, other.images)
    assert torch.equal(batch.values["class"], suite.image_split.labels[batch.ids])


def test_splits_share_no_base_image(suite):
    parts = {split: set(suite.image_split.ids(split).tolist()) for split in ("train", "val", "test")}
    assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == 5000
    assert len(parts["val"]) == 400 and len(parts["test"]) == 1000
    for split, ids in parts.items():
        assert set(suite.batch(split, 200, 0).ids.tolist()) <= ids


def test_attributes_are_uniform_and_independent(suite):
    values = suite._draw_values(6000, "all", torch.Generator().manual_seed(0))
    for name, count in suite.attributes.items():
        observed = values[name].bincount(minlength=count)
        chi2 = ((observed - 6000 / count) ** 2 / (6000 / count)).sum()
        assert chi2 < count + 5 * (2 * count) ** 0.5, name  # five standard deviations
    table = torch.zeros(6, 6).index_put_((values["hue"], values["frame"]), torch.ones(6000), accumulate=True)
    assert ((table - 6000 / 36) ** 2 / (6000 / 36)).sum() < 36 + 5 * 72**0.5


@pytest.mark.parametrize("name", VALUE_COUNTS)
def test_every_value_of_every_attribute_is_visible(suite, name):
    count = VALUE_COUNTS[name]
    image = suite.image_split.images[suite.image_split.ids("test")[:1]].repeat(count, 1, 1)
    drawn = suite.render(image, {name: torch.arange(count)}, torch.Generator().manual_seed(0))
    changed = ((drawn[:, None] - drawn[None]).abs() > 0.05).any(2).sum((-1, -2))  # pixels by pair of values
    assert changed[~torch.eye(count, dtype=torch.bool)].min() >= 9


def test_objects_lie_inside_the_frame(suite):
    rows = [suite.image_split.ids("test")[:1].repeat(12), torch.arange(12) % 3, torch.arange(12) % 4]
    values = {"scale": rows[1], "position": rows[2], "hue": torch.zeros(12, dtype=torch.int64)}
    full = torch.full((12, 28, 28), 255, dtype=torch.uint8)
    red = suite.render(full, values, torch.Generator().manual_seed(0))[:, 0, 2:-2, 2:-2]
    expected = torch.tensor([10.0, 14.0, 18.0])[rows[1]] ** 2
    assert torch.allclose(red.sum((1, 2)), expected, rtol=0.02)


@pytest.mark.parametrize("attribute", [*DEFAULT_ATTRIBUTES, *EXTRA_ATTRIBUTES])
def test_episodes_are_balanced_and_disjoint(suite, attribute):
    episode = suite.episode(attribute, "test", 60, 40, seed=1)
    n_values = 6 if attribute == "class" else suite.attributes[attribute]
    counts = episode.support_y.bincount(minlength=n_values)
    assert len(counts) == n_values and counts.min() >= 2 and counts.max() - counts.min() <= 1
    assert 0 <= episode.query_y.min() and episode.query_y.max() < n_values
    assert not set(episode.support_ids.tolist()) & set(episode.query_ids.tolist())
    assert len(set(episode.support_ids.tolist())) == 60
    assert episode.support_x.shape == (60, 3, 32, 32) and episode.query_x.shape == (40, 3, 32, 32)
    again = suite.episode(attribute, "test", 60, 40, seed=1)
    assert torch.equal(episode.query_x, again.query_x) and torch.equal(episode.support_y, again.support_y)


def test_class_episodes_use_the_group_asked_for(suite):
    episode = suite.episode("class", "test", 40, 40, seed=0, classes="unseen")
    assert torch.equal(episode.support_y + 6, suite.image_split.labels[episode.support_ids])
    hue = suite.episode("hue", "test", 60, 60, seed=0)
    assert suite.image_split.labels[torch.cat([hue.support_ids, hue.query_ids])].max() < 6


def test_ways_and_blended_pairs_of_classes(suite):
    plain = suite.episode("class", "train", 30, 30, seed=1, ways=3)
    assert set(plain.support_y.tolist()) == {0, 1, 2} >= set(plain.query_y.tolist())
    assert len(suite.image_split.labels[plain.support_ids].unique()) == 3
    blended = suite.episode("class", "train", 30, 30, seed=1, ways=3, blended=True)
    assert set(blended.support_y.tolist()) == {0, 1, 2}
    for label in range(3):  # one pair of seen classes a value: all the bases below are of its first class
        first = suite.image_split.labels[blended.support_ids[blended.support_y == label]]
        assert len(first.unique()) == 1 and int(first[0]) in suite.image_split.classes["seen"]
    assert not set(blended.support_ids.tolist()) & set(blended.query_ids.tolist())
    assert not torch.equal(plain.support_x, blended.support_x)
    six = suite.episode("class", "train", 30, 30, seed=1, blended=True)
    assert six.support_y.max() == len(suite.image_split.classes["seen"]) - 1


def test_small_splits_repeat_images_but_never_across():
    suite = AttributeImages("digits")
    episode = suite.episode("class", "val", 100, 100, seed=0)
    assert not set(episode.support_ids.tolist()) & set(episode.query_ids.tolist())


def test_errors(suite):
    with pytest.raises(ValueError, match="did you mean 'rotation'"):
        AttributeImages("digits", attributes=("class", "rotatoin"))
    with pytest.raises(ValueError, match="twice"):
        AttributeImages("digits", attributes=("hue", "hue"))
    with pytest.raises(ValueError, match="n_support=11: 'hue' needs at least 12"):
        suite.episode("hue", "test", 11, 10, seed=0)
    with pytest.raises(ValueError, match="known: seen, unseen, all"):
        suite.episode("hue", "test", 20, 10, seed=0, classes="some")
    with pytest.raises(ValueError, match="unknown attribute"):
        AttributeImages("digits", attributes=("class",)).episode("hue", "test", 20, 10, seed=0)
