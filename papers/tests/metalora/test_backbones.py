"""Backbones: shapes, deterministic pre-training and the cache."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from metalora_papers.config import BackboneConfig
from metalora_papers.metalora import backbones

pytest.importorskip("timm")
TINY = BackboneConfig(image_size=16, num_classes=3, steps=5, batch=8)
TINY_MIXER = replace(TINY, architecture="mixer")


def sample_batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.rand(8, 3, 16, 16, generator=generator), torch.randint(3, (8,), generator=generator)


def no_batch(step):
    raise AssertionError("a cached backbone was trained again")


def assert_same_weights(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    ("architecture", "size", "n_parameters"),
    [
        ("resnet", 32, 98_406),
        ("resnet", 28, 98_406),
        ("mixer", 32, 150_534),
        ("mixer", 28, 147_654),
        ("vit", 28, 140_806),
    ],
)
def test_build_gives_logits_and_pinned_size(architecture, size, n_parameters):
    model = backbones.build(architecture, size, 6)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 6)
    assert sum(p.numel() for p in model.parameters()) == n_parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnt", 32, 6), "unknown architecture 'resnt'"),
        (("mixer", 30, 6), "image_size=30"),
        (("vit", 30, 6), "image_size=30"),
    ],
)
def test_build_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbones.build(*arguments)


@pytest.mark.parametrize("config", [TINY, TINY_MIXER], ids=["resnet", "mixer"])
def test_pretrain_is_deterministic_frozen_and_leaves_the_generator(config):
    before = torch.get_rng_state()
    first = backbones.pretrain(config, sample_batch)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    assert_same_weights(first, backbones.pretrain(config, sample_batch))
    assert not any(m.training for m in first.modules())
    assert not any(p.requires_grad or p.grad is not None for p in first.parameters())
    other = backbones.pretrain(replace(config, seed=1), sample_batch)
    assert any(not torch.equal(x, y) for x, y in zip(first.parameters(), other.parameters(), strict=True))


def test_pretrain_learns():
    def coloured(step):
        labels = torch.arange(8) % 3
        return nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(8, 3, 16, 16), labels

    model = backbones.pretrain(replace(TINY, steps=60), coloured)
    images, labels = coloured(0)
    assert torch.equal(model(images).argmax(1), labels)


@pytest.mark.parametrize(
    ("config", "message"),
    [(replace(TINY, batch=9), r"asks for \(9, 3, 16, 16\)"), (replace(TINY, num_classes=2), "labels 1..2")],
)
def test_pretrain_refuses_a_batch_that_does_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        backbones.pretrain(config, sample_batch)


@pytest.mark.parametrize("config", [TINY, TINY_MIXER], ids=["resnet", "mixer"])
def test_pretrained_reads_the_same_bits_from_the_cache(config, tmp_path):
    trained = backbones.pretrained(config, sample_batch, "noise", tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 1 and files[0].suffix == ".safetensors"
    state = torch.get_rng_state()
    loaded = backbones.pretrained(config, no_batch, "noise", tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert_same_weights(trained, loaded)
    images, _ = sample_batch(0)
    assert torch.equal(trained(images), loaded(images))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_config_and_data_key_decide_the_cache_file(tmp_path, monkeypatch):
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path))
    for config, key in [(TINY, "a"), (TINY, "b"), (replace(TINY, seed=1), "a"), (TINY, "a")]:
        backbones.pretrained(config, sample_batch, key)
    assert len(list((tmp_path / "backbones").iterdir())) == 3


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no checksum"])
def test_damaged_cache_file_is_refused_by_name(damage, tmp_path):
    backbones.pretrained(TINY, sample_batch, "noise", tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-1] ^= 1
    elif damage == "cut short":
        del content[-10:]
    else:
        content = content.replace(b'"sha256"', b'"sha255"')
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged.*remove it.*{path.name}"):
        backbones.pretrained(TINY, no_batch, "noise", tmp_path)


def test_an_interrupted_training_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(ValueError, match="no space left.*the backbone is not cached"):
        backbones.pretrained(TINY, sample_batch, "noise", tmp_path)
    assert not list(tmp_path.iterdir())


def test_buffers_hash_changes_with_batchnorm_statistics_only():
    model = backbones.pretrain(TINY, sample_batch)
    before = backbones.buffers_hash(model)
    model(torch.rand(4, 3, 16, 16))
    with torch.no_grad():
        model.fc.bias += 1
    assert backbones.buffers_hash(model) == before
    model.train()(torch.rand(4, 3, 16, 16))
    assert backbones.buffers_hash(model) != before
