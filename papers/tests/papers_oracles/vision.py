"""Small pictures of two classes, a random ViT for a run of a second, and an encoder of ONNX files."""

import torch

WIDTH, LAYERS, SIZE = 24, 2, 16


def write_vit(folder):
    """A ViTModel of two layers of width 24 for pictures of 16 pixels, saved for `from_pretrained`; its name."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=3, intermediate_size=32, image_size=SIZE,
        patch_size=8, initializer_range=0.2,
    )  # fmt: skip
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return f"hf:{folder}"


def write_pictures(root, classes=("dark", "light"), count=10):
    """Pictures of 20 pixels; number i of class k has the grey value 100 k + i, so that no two are alike."""
    from PIL import Image

    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (100 * k + i,) * 3).save(root / name / f"{i:02d}.png")
    return root


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def onnx_file(tensors, products):
    """The bytes of an ONNX file.

    Args:
        tensors: Name -> tensor.
        products: Name of a node -> name of its second operand.
    """
    stored = [
        b"".join(_field(1, size) for size in tensor.shape)
        + _field(2, 1)
        + _field(8, name)
        + _field(9, tensor.contiguous().numpy().tobytes())
        for name, tensor in tensors.items()
    ]
    nodes = [
        _field(1, "x") + _field(1, operand) + _field(2, "y") + _field(3, name) + _field(4, "MatMul")
        for name, operand in products.items()
    ]
    nodes.append(_field(1, "x") + _field(2, "y") + _field(3, "/relu") + _field(4, "Relu"))
    graph = b"".join([*(_field(1, node) for node in nodes), *(_field(5, tensor) for tensor in stored)])
    return _field(1, 8) + _field(2, "pytorch") + _field(7, graph)
