"""No file has a network downloaded: the extractor comes from the caller, or by `allow_download=True`."""

import pytest
import torch
from torch import nn

import metalora
from metalora import AdapterConfig, ConditionConfig
from metalora.adapters.conditioning.extractor import check_no_download


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A file of an adapter whose extractor has a name on the Hub, its extractor, and the names that were loaded."""
    network, names = net(), []
    module = "metalora.adapters.conditioning.extractor.load_model"
    monkeypatch.setattr(module, lambda name: names.append(name) or network)
    condition = ConditionConfig(source="extractor", extractor="hf-hub:a/b", stages=("0",), feature_size=12, hidden=4)
    model = net()
    metalora.attach(model, AdapterConfig("metalora-cp", rank=2, targets="0", condition=condition))
    metalora.save(model, tmp_path / "adapter")
    assert names == ["timm:hf-hub:a/b"]  # in `attach` the name is that of the user
    names.clear()
    return tmp_path / "adapter", network, names


def test_the_extractor_of_a_file(saved):
    path, network, names = saved
    model = net()
    with pytest.raises(
        ValueError, match=f"{path}: its extractor 'hf-hub:a/b' may be downloaded: pass extractor=..., or"
    ):
        metalora.load(model, path)
    assert not names and metalora.adapter_of(model) is None
    metalora.load(model, path, extractor=network)
    assert not names
    metalora.load(net(), path, allow_download=True)
    assert names == ["timm:hf-hub:a/b"]


@pytest.mark.parametrize("name", ("efficientnet-lite0", "resnet18@weights.pth", "timm:resnet18@a/b.safetensors"))
def test_what_is_here_is_read(name):
    check_no_download(ConditionConfig(source="extractor", extractor=name), "FILE")


@pytest.mark.parametrize(
    "name", ("resnet18", "timm:resnet18", "hf-hub:a/b@weights.pth", "timm:hf-hub:a/b@c", "local-dir:/@c")
)
def test_what_may_be_downloaded_is_not(name):
    with pytest.raises(ValueError, match="FILE: its extractor '.*' may be downloaded"):
        check_no_download(ConditionConfig(source="extractor", extractor=name), "FILE")
