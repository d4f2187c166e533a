"""Draws from pools: usable label sets, groups kept apart, the same draws for the same seed."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalora.learner.data import (
    ArrayPreprocessor,
    EpisodeSettings,
    ImagePreprocessor,
    PoolEpisodes,
    PreparedInputs,
    ProceduralNotions,
    TaskPool,
    encode_labels,
)
from metalora.learner.data.groups import GroupSplit
from metalora.learner.data.random_draws import random_rows
from support.fresh_process import run_fresh

NO_NOTIONS = dict(procedural=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prepared(pool):
    return PreparedInputs(pool, ArrayPreprocessor())


def pool_of(count=400, seed=0, groups=None, **columns):
    """A pool of arrays whose first feature is the row."""
    inputs = torch.cat([torch.arange(count).float()[:, None], torch.randn(count, 4, generator=generator(seed))], 1)
    columns = {name: encode_labels(values, name) for name, values in columns.items()}
    return TaskPool(inputs, columns, groups, name="the pool")


def labels(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=generator(seed)).tolist()


def episodes(pool, notions=None, statistics=None, **changes):
    return PoolEpisodes([prepared(pool)], notions, statistics, EpisodeSettings(**changes))


def check(draw, pool):
    """Check everything that a draw promises."""
    rows = draw.rows
    assert len(set(rows.tolist())) == len(rows)
    assert torch.equal(draw.inputs[:, 0].long(), rows)
    assert len(draw.label_sets) == len(draw.names) >= 1
    for codes, name in zip(draw.label_sets, draw.names, strict=True):
        assert codes.shape == rows.shape and codes.dtype == torch.int64
        counts = codes[: draw.support][codes[: draw.support] >= 0].bincount()
        assert len(counts) >= 2 and (counts >= 3).all() and codes.max() < len(counts)
        assert (codes[draw.support :] >= 0).any()
        if name != "procedural":
            check_labels(codes, pool.columns[name].codes[rows])
    if pool.groups is not None:
        groups = pool.groups[rows].tolist()
        assert not set(groups[: draw.support]) & set(groups[draw.support :])


def check_labels(codes, truth):
    """Every class of a label set is one class of the column, with all items that have it; missing labels stay so."""
    pairs = {(int(code), int(label)) for code, label in zip(codes, truth, strict=True) if code >= 0}
    assert len({label for _, label in pairs}) == len(pairs) == len({code for code, _ in pairs})
    assert all(label >= 0 for _, label in pairs)
    for _, label in pairs:
        assert (codes[truth == label] >= 0).all()


def test_label_sets_of_several_columns_and_notions():
    count = 400
    pool = pool_of(colour=labels(count, 4), shape=labels(count, 3, 1), size=[None, "s", "l", "m"] * 100)
    source = episodes(pool, ProceduralNotions())
    names = Counter()
    for seed in range(60):
        draw = source.draw(generator(seed))
        check(draw, pool)
        assert draw.support == 60 and len(draw.rows) == 108 and len(draw.label_sets) == 6
        names.update(draw.names)
    assert set(names) == {"colour", "shape", "size", "procedural"}
    assert 0.4 < names["procedural"] / 360 < 0.65


def test_a_notion_that_occurs_again_has_fewer_classes():
    pool = pool_of(letter=labels(400, 8))
    source = episodes(pool, **NO_NOTIONS)
    for seed in range(20):
        draw = source.draw(generator(seed))
        check(draw, pool)
        if len(draw.label_sets) > 1:
            widths = [int(codes.max()) + 1 for codes in draw.label_sets]
            assert max(widths[1:]) < widths[0]


def test_a_column_of_two_classes_is_not_repeated():
    source = episodes(pool_of(sign=labels(400, 2)), **NO_NOTIONS)
    assert source.draw(generator()).names == ["sign"]


def test_many_classes_are_drawn_as_class_episodes():
    pool = pool_of(2000, species=labels(2000, 200))
    source = episodes(pool, **NO_NOTIONS)
    for seed in range(30):
        draw = source.draw(generator(seed))
        check(draw, pool)
        assert draw.names == ["species"]
        codes = draw.label_sets[0]
        assert 1 <= codes.max() <= 5 and (codes >= 0).float().mean() > 0.5


def test_class_episodes_are_balanced():
    unbalanced = [0] * 300 + [1] * 60 + [2] * 60
    source = episodes(pool_of(420, rare=unbalanced), class_episodes=1.0, ways=(3, 3), **NO_NOTIONS)
    for seed in range(10):
        assert (source.draw(generator(seed)).label_sets[0].bincount() == 36).all()


def test_rare_labels_are_drawn():
    rare = [None] * 960 + [0, 1] * 20
    pool = pool_of(1000, rare=rare)
    source = episodes(pool, **NO_NOTIONS)
    for seed in range(10):
        draw = source.draw(generator(seed))
        check(draw, pool)
        assert (draw.label_sets[0] >= 0).all()


@pytest.mark.parametrize("groups", (2, 5, 50, 6000))
def test_a_support_set_and_its_queries_share_no_group(groups):
    count = 12_000 if groups == 6000 else 1000
    of_items = torch.arange(count) % groups
    pool = pool_of(count, groups=of_items, colour=labels(count, 3), kind=(of_items // 2 % 2).tolist())
    source = episodes(pool, ProceduralNotions())
    usual = [source.draw(generator(seed)) for seed in range(30)]
    for draw in usual:
        check(draw, pool)
    sides = Counter(int(group) for draw in usual for group in pool.groups[draw.rows[: draw.support]])
    assert len(sides) > 1


def test_small_pools_are_divided_in_the_same_proportion():
    pool = pool_of(27, sign=labels(27, 2))
    draw = episodes(pool, ProceduralNotions(), class_episodes=0.0).draw(generator(1))
    check(draw, pool)
    assert (draw.support, len(draw.rows)) == (15, 27)


def test_unlabelled_pools():
    pool = pool_of(200)
    draw = episodes(pool, ProceduralNotions()).draw(generator())
    check(draw, pool)
    assert draw.names == ["procedural"] * 6


def test_statistics_come_with_a_draw():
    pool = pool_of(200)
    statistics = torch.arange(200.0)[:, None].expand(-1, 3) + torch.randn(200, 3, generator=generator())
    draw = episodes(pool, ProceduralNotions(statistics), [statistics]).draw(generator())
    assert torch.equal(draw.statistics, statistics[draw.rows])


def test_pools_are_drawn_in_proportion_to_their_notions():
    rich = pool_of(200, a=labels(200, 2), b=labels(200, 2, 1), c=labels(200, 2, 2))
    source = PoolEpisodes([prepared(rich), prepared(pool_of(200))], ProceduralNotions())
    drawn = Counter(source.draw(generator(seed)).pool for seed in range(400))
    assert 260 < drawn[0] < 340


def test_draws_depend_on_the_generator_only():
    pool = pool_of(groups=torch.arange(400) // 2, colour=labels(400, 4), species=labels(400, 40))
    source = episodes(pool, ProceduralNotions())
    state = torch.get_rng_state()
    first = [source.draw(generator(seed)) for seed in range(10)]
    torch.manual_seed(99)
    second = [source.draw(generator(seed)) for seed in reversed(range(10))][::-1]
    torch.set_rng_state(state)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.rows, other.rows) and one.names == other.names
        assert all(torch.equal(a, b) for a, b in zip(one.label_sets, other.label_sets, strict=True))
    assert len({tuple(draw.rows.tolist()) for draw in first}) == 10


SCRIPT = """
import torch
from metalora.learner.data import *
pictures = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
pool = TaskPool(pictures, {"a": encode_labels([row % 3 for row in range(200)], "a")})
source = PoolEpisodes([PreparedInputs(pool, ImagePreprocessor((16, 16), 16))], ProceduralNotions())
for seed in range(5):
    draw = source.draw(torch.Generator().manual_seed(seed))
    print(draw.names, draw.rows.tolist(), [codes.tolist() for codes in draw.label_sets])
"""


def test_two_processes_draw_the_same(capsys):
    other = run_fresh(SCRIPT)  # its hashes of texts are not those of this process
    exec(SCRIPT, {})
    assert capsys.readouterr().out == other.stdout and len(other.stdout) > 1000, other.stderr


@given(
    count=st.integers(8, 150),
    classes=st.integers(2, 30),
    missing=st.floats(0, 0.9),
    grouped=st.booleans(),
    procedural=st.sampled_from((0.0, 0.5, 1.0)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_any_pool_gives_a_usable_draw_or_says_why_not(count, classes, missing, grouped, procedural, seed):
    values = np.array(labels(count, classes, seed), dtype=object)
    values[torch.rand(count, generator=generator(seed)).numpy() < missing] = None
    groups = torch.arange(count) // 3 if grouped else None
    pool = pool_of(count, seed, groups, a=values.tolist())
    try:
        source = episodes(pool, ProceduralNotions(), procedural=procedural)
        draw = source.draw(generator(seed))
    except ValueError as error:
        assert "the pool" in str(error)
        return
    check(draw, pool)


MISTAKES = {
    "too few items": (lambda: episodes(pool_of(7), ProceduralNotions()), "the pool: 7 items; at least 8"),
    "a single group": (
        lambda: episodes(pool_of(50, groups=torch.zeros(50, dtype=torch.int64)), ProceduralNotions()),
        "the pool: all items are in one group",
    ),
    "groups that are classes": (
        lambda: episodes(pool_of(60, groups=torch.arange(60) % 3, brand=[0, 1, 2] * 20), ProceduralNotions()),
        "the pool: no two groups share a class of 'brand'",
    ),
    "no labels": (lambda: episodes(pool_of(50)), "no label column has two classes with 4 items"),
    "classes that are too small": (lambda: episodes(pool_of(50, a=list(range(25)) * 2)), "no label column"),
    "a probability": (lambda: EpisodeSettings(procedural=1.5), "procedural is 1.5"),
    "ways": (lambda: EpisodeSettings(ways=(1, 3)), "ways"),
    "sizes": (lambda: EpisodeSettings(support=5), "support 5"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    build, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_equal_inputs_without_labels_are_named():
    pool = TaskPool(torch.ones(50, 3), name="the pool")
    with pytest.raises(ValueError, match="the pool: .* inputs that differ"):
        episodes(pool, ProceduralNotions()).draw(generator())


# ---- prepared inputs ------------------------------------------------------------------------------------------------
def test_prepared_inputs_are_the_same_with_and_without_room():
    pictures = torch.randint(0, 256, (300, 3, 10, 12), dtype=torch.uint8, generator=generator())
    preprocess = ImagePreprocessor((8, 8), 9)
    kept = PreparedInputs(TaskPool(pictures), preprocess)
    made = PreparedInputs(TaskPool(pictures), preprocess, cache_bytes=300 * 192 - 1)
    assert kept.is_cached and not made.is_cached
    rows = torch.tensor([299, 0, 7])
    torch.testing.assert_close(kept.batch(rows), preprocess([pictures[299], pictures[0], pictures[7]]))
    torch.testing.assert_close(made.batch(rows), kept.batch(rows))
    assert [len(batch) for batch in kept.batches(128)] == [128, 128, 44]


def test_progress_is_reported():
    seen = []
    PreparedInputs(pool_of(600), ArrayPreprocessor(), on_progress=seen.append)
    assert seen == [256, 512]


def test_arrays_with_nan_are_named_by_their_row():
    pool = pool_of(20)
    pool.inputs[4, 2] = float("nan")
    with pytest.raises(ValueError, match="the pool, row 5: a value is NaN"):
        prepared(pool)


# ---- groups and rows ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("groups", (2, 3, 4096, 5000))
def test_groups_are_divided(groups):
    split = GroupSplit(torch.arange(2 * groups) % groups, "pool")
    shares = []
    for seed in range(20):
        side = split.random_side(torch.arange(2 * groups), 0.6, generator(seed))
        assert torch.equal(side[:groups], side[groups:]) and side.any() and not side.all()
        shares.append(side.float().mean().item())
    assert abs(np.mean(shares) - round(0.6 * groups) / groups) < 0.05


@pytest.mark.parametrize("count", (3, 100, 10_000_000))
def test_random_rows_differ(count):
    rows = random_rows(count, 108, generator())
    assert len(rows.unique()) == len(rows) >= min(count, 108) * 0.99 and rows.max() < count
