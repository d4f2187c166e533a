"""The suites of domains: one interface, held-out domains, disjoint images."""

import pytest
import torch

from metalora_papers.metalora.cue import DELTAS, HUE_RANGES, CueImages
from metalora_papers.metalora.drawing import hue_to_rgb
from metalora_papers.metalora.glyphs import load_glyphs
from metalora_papers.metalora.natural import NaturalImages
from metalora_papers.metalora.shift import ANGLE_RANGES, COMBINATIONS, ShiftImages

SPLITS = ("train", "val", "test")


def lies_in(ranges, degrees):
    """Whether an angle lies in one of the ranges; one may begin before its period."""
    place = (degrees - ranges.first) % ranges.period
    return any(start <= place < end or start <= place - ranges.period < end for start, end in ranges.bounds)


@pytest.fixture(scope="module")
def suites():
    natural = NaturalImages(train=("mnist-5k",), val=("glyphs-greek",), test=("digits",))
    return {"cue": CueImages("mnist-5k"), "shift": ShiftImages("mnist-5k"), "natural": natural}


@pytest.mark.parametrize("name", ["cue", "shift", "natural"])
@pytest.mark.parametrize("split", SPLITS)
def test_batches(suites, name, split):
    suite = suites[name]
    batch, again = suite.batch(split, 30, 5, 4), suite.batch(split, 30, 5, 4)
    assert batch.shifted.shape == batch.clean.shape == (30, 3, 28, 28)
    for images in (batch.shifted, batch.clean):
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert torch.equal(batch.shifted, again.shifted) and batch.domains == again.domains
    assert batch.domain.bincount().tolist() == [8, 8, 7, 7] and len(batch.domains) == 4
    assert torch.equal(batch.labels, suite.labels_of(batch.ids))
    assert suite.domains(split, 4, 5) == list(batch.domains)
    images, labels = suite.reference_batch(split, 9, 0)
    assert images.shape == (9, 3, 28, 28) and labels.shape == (9,)


@pytest.mark.parametrize("name", ["cue", "shift", "natural"])
@pytest.mark.parametrize("classes", ["seen", "unseen", "all"])
def test_banks_and_queries_share_no_image(suites, name, classes):
    suite = suites[name]
    domain = suite.domains("test", 1, 0)[0]
    drawn = suite.bank_and_queries(domain, classes, per_class=20, n_query=40, seed=2)
    ids = torch.cat([drawn.bank_ids, drawn.query_ids])
    assert len(ids.unique()) == len(ids)
    counts = drawn.bank_y.unique(return_counts=True)[1]
    assert set(counts.tolist()) == {20} and len(counts) == {"seen": 6, "unseen": 4, "all": 10}[classes]
    assert drawn.clean_bank_x.shape == drawn.bank_x.shape and drawn.query_x.shape == (40, 3, 28, 28)
    assert set(drawn.query_y.tolist()) <= set(drawn.bank_y.tolist())
    with pytest.raises(ValueError, match="test images"):
        suite.bank_and_queries(domain, classes, per_class=200, n_query=40, seed=2)


def test_cue_domains_keep_to_their_wedges(suites):
    hues = {split: torch.tensor([d.hue for d in suites["cue"].domains(split, 2000, 0)]) for split in SPLITS}
    to_axis = {split: (45 - ((hue % 90) - 45).abs()) for split, hue in hues.items()}  # distance to 0, 90, 180, 270
    assert to_axis["test"].max() <= 20
    assert to_axis["train"].min() >= 20 and to_axis["train"].max() <= 45 - 8
    assert to_axis["val"].min() >= 45 - 8
    for split, hue in hues.items():
        assert ((hue >= 0) & (hue < 360)).all()
        quarters = ((hue + 45) % 360 // 90).long().bincount(minlength=4)
        assert (quarters - 500).abs().max() < 100
        assert all(lies_in(HUE_RANGES[split], float(each)) for each in hue[:50])
    assert {d.delta for d in suites["cue"].domains("train", 50, 0)} == set(DELTAS)


def test_cue_frame_and_clean_image_have_the_target_hue(suites):
    suite = suites["cue"]
    batch = suite.batch("test", 40, 0, 5)
    colour = hue_to_rgb(torch.tensor([domain.hue for domain in batch.domains]))[batch.domain]
    frame = batch.shifted[:, :, :2].mean((2, 3))
    assert (frame - colour).abs().max() < 0.06  # clamped noise
    base = suite.image_split.images[batch.ids].float() / 255
    assert torch.allclose(batch.clean, base[:, None] * colour[:, :, None, None], atol=1e-6)
    assert batch.clean[:, :, 0].max() == 0  # no frame


def test_cue_distractors_are_outside_bank_and_queries(suites):
    suite = suites["cue"]
    taken = suite.image_split.ids("test")[:300]
    left = suite.companions("test", taken)
    assert len(left) == 700 and not torch.isin(left, taken).any()


def test_shift_holds_out_angles_and_combinations(suites):
    shown = {}
    for split in SPLITS:
        domains = suites["shift"].domains(split, 600, 0)
        assert all(lies_in(ANGLE_RANGES[split], d.angle) and -90 <= d.angle < 90 for d in domains)
        others = [other for other in SPLITS if other != split]
        assert not any(lies_in(ANGLE_RANGES[other], d.angle) for d in domains for other in others)
        shown[split] = {(int(d.inverted), int(d.blur > 0), int(d.noise > 0), int(d.scale < 0.8)) for d in domains}
        assert shown[split] == set(COMBINATIONS[split])
    assert sum(map(len, shown.values())) == 16 == len(set.union(*shown.values()))
    assert all({one[axis] for one in shown["train"]} == {0, 1} for axis in range(4))


def test_shift_without_a_shift_is_the_clean_image(suites):
    images = suites["shift"].image_split.images[:5]
    zero, one = torch.zeros(5), torch.ones(5)
    drawn = suites["shift"].render(images, zero, zero, zero, zero, one, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn, suites["shift"].clean(images), atol=1e-5)
    turned = suites["shift"].render(images, zero + 90, zero, zero, zero, one, torch.Generator().manual_seed(0))
    assert torch.allclose(turned, torch.rot90(suites["shift"].clean(images), 1, (2, 3)), atol=1e-4)


def test_natural_sets_have_their_own_ids_and_labels(suites):
    suite = suites["natural"]
    labels = {split: set(suite.batch(split, 200, 0, 2, "all").labels.tolist()) for split in SPLITS}
    assert not labels["train"] & labels["val"] and not labels["train"] & labels["test"]
    assert suite.domains("val", 2, 0) == ["glyphs-greek"] * 2
    with pytest.raises(ValueError, match="twice"):
        NaturalImages(train=("digits",), val=(), test=("digits",))
    with pytest.raises(ValueError, match="did you mean 'glyphs-greek'"):
        NaturalImages(train=("glyph-greek",), val=(), test=())


def test_glyphs_fill_the_page_without_touching_its_edge():
    glyphs = load_glyphs("glyphs-greek", "test")
    assert glyphs.images.shape[1:] == (28, 28) and len(glyphs.class_names) == 24
    assert glyphs.images.flatten(1).max(1).values.min() > 120
    edges = torch.cat([glyphs.images[:, [0, -1]].flatten(1), glyphs.images[:, :, [0, -1]].flatten(1)], 1)
    assert (edges > 60).any(1).float().mean() < 0.02
    with pytest.raises(ValueError, match=r"no \.ttf or \.otf files"):
        load_glyphs("glyphs-greek", "test", "/nonexistent")


def test_errors(suites):
    with pytest.raises(ValueError, match="unknown split"):
        suites["cue"].domains("tests", 1, 0)
    with pytest.raises(ValueError, match="n_domains=9"):
        suites["shift"].batch("train", 8, 0, 9)
    with pytest.raises(ValueError, match="distractors"):
        suites["cue"].shifted(torch.tensor([0]), suites["cue"].domains("test", 1, 0), torch.tensor([0]),
                              torch.tensor([], dtype=torch.int64), torch.Generator())  # fmt: skip
