"""Readouts with shared weights: the logits of an item that neither weights nor standardisation have seen."""

from dataclasses import replace

import pytest
import torch

from metalora.learner.readouts import Targets, make_readout
from metalora.learner.readouts.prototype import prototype_logits_without_self
from metalora.learner.readouts.standardise import centre
from metalora.learner.readouts.without_item import without_each_item
from support.readouts import gaussian_task

ITEMS, WIDTH = 17, 40


def awkward_task():
    """Features of units from 1e-5 to 100, eight of which inform, and one that only one item makes vary."""
    noise, codes = torch.randn(ITEMS, WIDTH).double(), torch.arange(ITEMS) % 3
    noise[:, 5:13] += codes[:, None]
    support = noise * torch.logspace(-5, 2, WIDTH).double()
    support[:, 3] = 1.0
    support[0, 3] = 4.0
    return support, codes


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prototype", {}),
        ("prototype", {"balanced": True}),
        ("prototype", {"distance": "euclidean"}),
        ("knn", {}),
        ("knn", {"balanced": True}),
    ],
)
def test_leave_one_out_in_use_equals_fits_without_the_item(name, settings):
    support, codes = awkward_task()
    targets = Targets.classes(codes, 3)
    fitted = make_readout(name, **settings).eval().fit(support, targets)
    for item in range(ITEMS):
        others = torch.arange(ITEMS) != item
        refit = make_readout(name, **settings).fit(support[others], targets.of(others))  # not calibrated
        if name == "knn":
            refit = replace(refit, rule=replace(refit.rule, scale=fitted.rule.scale))
        expected = refit.logits(support[item : item + 1])[0] / fitted.temperature
        torch.testing.assert_close(fitted.leave_one_out[item], expected.detach(), rtol=1e-5, atol=1e-5)


def test_features_that_are_kept_are_chosen_without_the_item():
    support, codes = awkward_task()
    targets = Targets.classes(codes, 3)
    scale = torch.tensor(10.0).double()
    found = prototype_logits_without_self(centre(support), targets, scale, "cosine", kept=7)
    for item in range(ITEMS):
        others = torch.arange(ITEMS) != item
        refit = make_readout("prototype", balanced=True).fit(support[others], targets.of(others))
        columns = refit.support.square().sum(0).topk(7).indices
        query = refit.scaling(support[item : item + 1])[:, columns]
        narrow = replace(refit.rule, prototypes=refit.rule.prototypes[:, columns])
        torch.testing.assert_close(found[item], narrow.logits(query, query)[0].detach(), rtol=1e-5, atol=1e-5)


def test_chunks_give_the_same(monkeypatch):
    support, codes = gaussian_task(ITEMS)
    targets = Targets.classes(codes, 3)
    whole = torch.cat([part.cosines() for part in without_each_item(centre(support), targets)])
    monkeypatch.setattr("metalora.learner.readouts.without_item.NUMBERS_AT_ONCE", 60)
    parts = list(without_each_item(centre(support), targets))
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat([part.cosines() for part in parts]), whole)
