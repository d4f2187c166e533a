"""The stages of a network, by its architecture."""

import pytest
from torch import nn

from metalora.adapters.conditioning.stages import stages
from metalora_papers.metalora.backbones import build

pytest.importorskip("timm")
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def timm_model(name):
    import timm

    return timm.create_model(name, pretrained=False)


def torchvision_resnet():
    import torchvision

    return torchvision.models.resnet18()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: build("resnet", 32, 6), ["act1", *LAYERS], id="resnet"),
        pytest.param(lambda: build("mixer", 32, 6), ["stem", *(f"blocks.{k}" for k in range(4))], id="mixer"),
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
    assert stages(model) == expected
    for path in expected:
        model.get_submodule(path)


def test_stages_refuses_a_model_without_parts():
    with pytest.raises(ValueError, match="Linear has no stages"):
        stages(nn.Linear(3, 3))
