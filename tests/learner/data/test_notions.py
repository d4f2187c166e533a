"""Procedural notions: classes from unlabelled inputs, reproducible and of usable sizes."""

import pytest
import torch

from metalora.learner.data import ProceduralNotions
from metalora.learner.data.functionals import functional_values, picture_values, text_values
from metalora.learner.data.label_sets import consecutive_classes
from metalora.learner.data.notions import RULES, PrincipalComponents, clusters, quantile_bins, sectors

ITEMS, SUPPORT = 108, 60


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(size=32):
    return torch.rand(ITEMS, 3, size, size, generator=generator(7))


def texts():
    lengths = torch.randint(3, 20, (ITEMS, 1), generator=generator(7))
    mask = (torch.arange(20) < lengths).long()
    return {"input_ids": torch.randint(0, 500, (ITEMS, 20), generator=generator(8)) * mask, "attention_mask": mask}


def statistics(width=40):
    mixing = torch.randn(width, width, generator=generator(9))
    return torch.randn(ITEMS, width, generator=generator(10)) @ mixing + 100


INPUTS = {
    "pictures": pictures,
    "pictures of one pixel": lambda: pictures(1),
    "pictures of four pixels": lambda: pictures(2),
    "pictures of one colour each": lambda: pictures(1).expand(-1, -1, 16, 16),
    "texts": texts,
    "arrays": lambda: torch.randn(ITEMS, 11, generator=generator(7)),
    "arrays with constant features": lambda: torch.cat([torch.full((ITEMS, 3), 7.7), pictures(1).flatten(1)], 1),
    "sequences": lambda: torch.randn(ITEMS, 5, 6, generator=generator(7)),
}


@pytest.mark.parametrize("with_statistics", (False, True))
@pytest.mark.parametrize("kind", INPUTS)
def test_every_class_has_three_items_of_the_support_set(kind, with_statistics):
    inputs = INPUTS[kind]()
    values = statistics() if with_statistics else None
    notions = ProceduralNotions(values)
    for seed in range(40):
        codes = notions.labels(inputs, values, SUPPORT, generator(seed))
        assert codes.shape == (ITEMS,) and codes.dtype == torch.int64 and codes.min() >= -1
        counts = codes[:SUPPORT][codes[:SUPPORT] >= 0].bincount()
        assert 2 <= len(counts) <= 6 and (counts >= 3).all()
        assert len(counts) == codes.max() + 1 and (codes[SUPPORT:] >= 0).any()


@pytest.mark.parametrize("kind", INPUTS)
def test_a_notion_depends_on_the_generator_only(kind):
    inputs = INPUTS[kind]()
    notions = ProceduralNotions(statistics())
    drawn = [notions.labels(inputs, statistics(), SUPPORT, generator(seed)) for seed in range(10)]
    again = [notions.labels(inputs, statistics(), SUPPORT, generator(seed)) for seed in range(10)]
    assert all(torch.equal(first, second) for first, second in zip(drawn, again, strict=True))
    assert len({tuple(codes.tolist()) for codes in drawn}) == 10


def test_no_notion_changes_the_random_state():
    state = torch.get_rng_state()
    ProceduralNotions(statistics()).labels(pictures(), statistics(), SUPPORT, generator())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("inputs", (torch.ones(ITEMS, 3, 16, 16), torch.zeros(ITEMS, 8)))
def test_equal_inputs_give_no_notion(inputs):
    constant = torch.full((ITEMS, 40), 3.3)
    codes = ProceduralNotions(constant).labels(inputs, constant, SUPPORT, generator())
    assert (codes == -1).all()


def test_equal_texts_give_no_notion():
    inputs = {name: values[:1].expand(ITEMS, -1) for name, values in texts().items()}
    assert (ProceduralNotions().labels(inputs, None, SUPPORT, generator()) == -1).all()


@pytest.mark.parametrize("kind", INPUTS)
def test_functionals_are_finite_and_differ(kind):
    inputs = INPUTS[kind]()
    values = [functional_values(inputs, 3, generator(seed)) for seed in range(30)]
    assert all(value.shape == (ITEMS, 3) and value.isfinite().all() for value in values)
    assert not torch.allclose(values[0], values[1])


def test_a_functional_of_a_picture_does_not_depend_on_the_other_pictures_but_for_a_scale():
    first = picture_values(pictures()[:50], 1, generator(3))[:, 0]
    among_all = picture_values(pictures(), 1, generator(3))[:50, 0]
    assert torch.corrcoef(torch.stack([first, among_all]))[0, 1] > 0.98  # bends are not linear in the scale


def test_padding_does_not_count():
    inputs = texts()
    more = {name: torch.cat([values, torch.zeros(ITEMS, 5, dtype=torch.int64)], 1) for name, values in inputs.items()}
    for seed in range(5):
        expected = text_values(*inputs.values(), 3, generator(seed))
        torch.testing.assert_close(text_values(*more.values(), 3, generator(seed)), expected)


def test_the_order_of_tokens_does_not_count():
    inputs = texts()
    flipped = {name: values.flip(1) for name, values in inputs.items()}
    expected = text_values(*inputs.values(), 3, generator(1))
    torch.testing.assert_close(text_values(*flipped.values(), 3, generator(1)), expected)


# ---- components -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("items, width", ((200, 30), (30, 200), (50, 50)))
def test_components_are_those_of_scikit_learn(items, width):
    decomposition = pytest.importorskip("sklearn.decomposition")
    values = (torch.randn(items, 12, generator=generator()) @ torch.randn(12, width, generator=generator(1))).double()
    values = (values + 0.1 * torch.randn(items, width, generator=generator(2))) * 50 + 7
    standardised = (values - values.mean(0)) / values.std(0, correction=0)
    count = min(24, items - 1)
    expected = decomposition.PCA(count, svd_solver="full").fit(standardised)
    variances = torch.from_numpy(expected.explained_variance_) * (items - 1) / items
    scores = torch.from_numpy(expected.transform(standardised)) * variances.pow(-0.25)
    result = PrincipalComponents(values.float()).scores(values.float())[:, :count]
    torch.testing.assert_close(result[:, :12].abs().double(), scores[:, :12].abs(), rtol=5e-3, atol=5e-3)


def test_a_constant_statistic_counts_for_nothing():
    values = statistics()
    with_constant = torch.cat([values, torch.full((ITEMS, 1), 0.1)], 1)
    components = PrincipalComponents(with_constant)
    with_constant[:, -1] += 5
    torch.testing.assert_close(
        components.scores(with_constant)[:, :10].abs(),
        PrincipalComponents(values).scores(values)[:, :10].abs(),
        rtol=1e-2,
        atol=1e-2,
    )


def test_wrong_statistics_are_named():
    values = statistics()
    values[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        ProceduralNotions(values)
    with pytest.raises(ValueError, match="width 7, those of the pool have 40"):
        PrincipalComponents(statistics()).scores(torch.zeros(5, 7))


# ---- rules ----------------------------------------------------------------------------------------------------------
def values_of(seed):
    return torch.randn(ITEMS, 3, generator=generator(seed))


@pytest.mark.parametrize("rule", RULES)
def test_rules_give_two_to_six_classes(rule):
    counts = {len(rule(values_of(seed), generator(seed)).unique()) for seed in range(50)}
    assert counts == set(range(2 if rule is quantile_bins else 3, 7))


def test_quantile_bins_have_equal_sizes_and_follow_the_value():
    for seed in range(10):
        values = values_of(seed)
        bins = quantile_bins(values, generator(seed))
        assert bins.bincount().max() - bins.bincount().min() <= 1
        assert (bins[values[:, 0].argsort()].diff() >= 0).all()


def test_sectors_depend_on_the_angle_only():
    values = values_of(0)
    expected = sectors(values, generator(4))
    assert torch.equal(sectors(values * torch.tensor([3.0, 3.0, 100.0]), generator(4)), expected)


def test_clusters_are_found_again():
    centres = torch.tensor([[0.0, 0, 0], [50, 0, 0], [0, 50, 0], [0, 0, 50], [50, 50, 50], [-50, 0, 0]])
    truth = torch.arange(ITEMS) % 6
    values = centres[truth] + values_of(0)
    codes = clusters(values, generator(0))
    pairs = {(int(cluster), int(label)) for cluster, label in zip(truth, codes, strict=True)}
    assert len({cluster for cluster, _ in pairs}) == len(pairs)  # no true cluster is torn apart


# ---- label sets -----------------------------------------------------------------------------------------------------
def test_small_classes_are_dropped():
    codes = torch.tensor([4, 4, 4, 7, 7, 9, 9, 9, -1, 4, 7, 9])
    assert consecutive_classes(codes, support=9).tolist() == [0, 0, 0, -1, -1, 1, 1, 1, -1, 0, -1, 1]


@pytest.mark.parametrize(
    "codes, support",
    (
        ([1, 1, 1, 2, 2, 1], 5),  # a single class is large enough
        ([1, 1, 1, 2, 2, 2, 3], 6),  # no query has a class
        ([-1, -1, -1, -1], 3),
    ),
)
def test_unusable_labels(codes, support):
    assert consecutive_classes(torch.tensor(codes), support) is None
