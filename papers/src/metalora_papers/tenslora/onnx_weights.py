"""The weights of an ONNX file by the names of their modules, without the package onnx.

An ONNX file is a protocol buffer: a sequence of fields, each with a number, a wire type and a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
FIXED = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
GRAPH, NODE, INITIALIZER = 7, 1, 5  # numbers of fields: in the model; in the graph
NODE_INPUT, NODE_NAME, NODE_TYPE = 1, 3, 4
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9  # in a tensor
FLOAT32 = 1
Value = int | memoryview


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the weights of an ONNX file that PyTorch exported, by name.

    A matrix that the export turned into an operand of a product has no name of its own any more. It gets that of the
    module whose product it is, with ".weight", and the shape (out, in) that the module's weight has.

    Args:
        path: The file.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        graph = _only(memoryview(Path(path).read_bytes()), GRAPH)
        tensors = dict(_tensor(value) for number, value in _fields(graph) if number == INITIALIZER)
        products = [_product(value) for number, value in _fields(graph) if number == NODE]
    except (IndexError, StopIteration, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a complete ONNX file ({error or type(error).__name__})") from None
    for module, operand in products:
        if operand in tensors:
            tensors[f"{module}.weight"] = tensors.pop(operand).T.contiguous()
    return tensors


def _fields(data: Value) -> Iterator[tuple[int, Value]]:
    """Yield the number and the value of every field of a message."""
    assert isinstance(data, memoryview)
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        length = FIXED.get(wire_type, 0)
        if wire_type == LENGTH:
            length, place = _varint(data, place)
        elif not length:
            raise IndexError(f"wire type {wire_type}")
        if place + length > len(data):
            raise IndexError("it ends early")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return a whole number, seven bits a byte with the lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


def _only(data: Value, wanted: int) -> Value:
    return next(value for number, value in _fields(data) if number == wanted)


def _text(value: Value) -> str:
    assert isinstance(value, memoryview)
    return bytes(value).decode()


def _tensor(data: Value) -> tuple[str, Tensor]:
    """Return the name and the numbers of a stored tensor; of another type than float32 or without raw data, none."""
    fields = list(_fields(data))
    shape = [value for number, value in fields if number == DIMS and isinstance(value, int)]
    values = dict(fields)
    name, raw = _text(values[NAME]), values.get(RAW_DATA)
    if values[DATA_TYPE] != FLOAT32 or not isinstance(raw, memoryview) or len(raw) != 4 * math.prod(shape):
        return name, torch.empty(0)
    return name, torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(shape)


def _product(data: Value) -> tuple[str, str]:
    """Return the module and the second operand of a product, such as "layer.0.fc1" of the node "/layer.0/fc1/MatMul".

    Any other node has two empty texts.
    """
    fields = list(_fields(data))
    values = dict(fields)
    inputs = [_text(value) for number, value in fields if number == NODE_INPUT]
    if _text(values[NODE_TYPE]) != "MatMul" or len(inputs) < 2:
        return "", ""
    return _text(values[NODE_NAME]).removesuffix("/MatMul").strip("/").replace("/", "."), inputs[1]
