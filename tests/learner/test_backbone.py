"""Backbones: how their weights lie in memory."""

import torch
from torch import nn

from metalora.io.fingerprint import fingerprint
from metalora.learner import ImagePreprocessor, load_backbone


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_a_network_for_pictures_is_channels_last_and_computes_the_same():
    pictures = torch.randn(2, 3, 16, 16)
    expected = network()(pictures)
    preprocessor = ImagePreprocessor(size=(16, 16), resize=16)
    model = load_backbone(network(), preprocessor=preprocessor).model
    found = model(pictures)
    assert found.is_contiguous(memory_format=torch.channels_last)  # the fast path ran
    torch.testing.assert_close(found, expected)


def test_the_fingerprint_does_not_depend_on_the_layout():
    paths = ["0", "2"]
    assert fingerprint(network().to(memory_format=torch.channels_last), paths) == fingerprint(network(), paths)
