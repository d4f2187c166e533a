"""Damage to files: of their bytes, of the text of their headers, of the values that describe them, of their tensors."""

import json
import random
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import load as tensors_in
from safetensors.torch import save as file_of

from metalora.io.described_file import checksum

BACKTRACKING = "(([a-z.0-9]+)+)+!"  # a regular expression that takes 2^n steps on a text of n letters
HOSTILE_NUMBERS = (-1, 0, 1, 2, 7, 99, 10**6, 10**18, 10**400, -(10**9), 0.5, -0.5, 1e-300, 1e300)
HOSTILE_VALUES = (
    *HOSTILE_NUMBERS,
    *(float("nan"), float("inf"), float("-inf"), None, True, False, "", "x", "é\x00\n", "NaN", "y" * 5000),
    *([], {}, [None], {"x": 1}, [[[]]], "../../x", "hf-hub:nobody/nothing", "timm:resnet18", BACKTRACKING),
)
PATTERN_FIELDS = ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern", "targets")
TWICE = "a key to be there twice"  # a marker that `as_json` replaces


# ---- bytes -----------------------------------------------------------------------------------------------------------
def flip_bits(content, draw):
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 4, 50))):
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def truncate(content, draw):
    return content[: draw.choice((0, 1, 8, 9, len(content) // 2, len(content) - 1, draw.randrange(len(content))))]


def insert(content, draw):
    place = draw.choice((0, 8, len(content), draw.randrange(len(content))))
    return content[:place] + draw.randbytes(draw.choice((1, 4, 64))) + content[place:]


def cut_out(content, draw):
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.choice((1, 4, 64)) :]


def clear(content, draw):
    start, size = draw.randrange(len(content)), draw.choice((1, 4, 64))
    return content[:start] + draw.choice((b"\x00", b"\xff")) * size + content[start + size :]


def repeat(content, draw):
    start, size = draw.randrange(len(content)), draw.choice((4, 64, len(content)))
    return content[:start] + content[start : start + size] + content[start:]


BYTES = (flip_bits, truncate, insert, cut_out, clear, repeat)


# ---- values ----------------------------------------------------------------------------------------------------------
def nodes_of(value, parent=None, key=None):
    """Yield (parent, key) of every value inside of a value."""
    if parent is not None:
        yield parent, key
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for inner, item in items:
        yield from nodes_of(item, value, inner)


def hostile(draw):
    if draw.random() < 0.05:
        return json.loads("[" * 300 + "]" * 300)
    return draw.choice(HOSTILE_VALUES)


def replace_value(parent, key, draw):
    parent[key] = hostile(draw)


def change_number(parent, key, draw):
    is_number = isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool)
    parent[key] = draw.choice(HOSTILE_NUMBERS) if is_number else str(parent[key]) + "s"


def remove_value(parent, key, draw):
    del parent[key]


def rename_key(parent, key, draw):
    if isinstance(parent, dict):
        text = str(key)
        parent[draw.choice((text + "s", text[:-1], text.upper(), "x"))] = parent.pop(key)
    else:
        parent.insert(0, parent[key])


def add_key(parent, key, draw):
    if isinstance(parent, dict):
        parent[draw.choice(("x", "scale", "bias", "rank_pattern", "extractor", "sha256"))] = hostile(draw)
    else:
        parent.append(hostile(draw))


def swap_values(parent, key, draw):
    other = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


def repeat_key(parent, key, draw):
    if isinstance(parent, dict):
        parent[TWICE] = [key, hostile(draw)]


VALUES = (replace_value, replace_value, change_number, remove_value, rename_key, add_key, swap_values, repeat_key)


def change_values(values, draw):
    """Change JSON values in place; return the name of the change."""
    nodes = list(nodes_of(values))
    patterns = [(parent, key) for parent, key in nodes if key in PATTERN_FIELDS]
    if patterns and draw.random() < 0.08:
        parent, key = draw.choice(patterns)
        parent[key] = draw.choice((BACKTRACKING, {BACKTRACKING: 2}, {".*" * 40 + "!": 2}, [BACKTRACKING]))
        return f"pattern {key}"
    # Entries near the top first: a long list deep inside would have most of the draws.
    tops = [(values, key) for key in (values if isinstance(values, dict) else ())]
    parent, key = draw.choice(tops if tops and draw.random() < 0.4 else nodes)
    change = draw.choice(VALUES)
    change(parent, key, draw)
    return f"{change.__name__} {key}"


def as_json(values):
    """JSON of values, in which a marked key stands twice."""
    if isinstance(values, dict):
        entries = []
        for key, value in values.items():
            key, value = value if key == TWICE else (key, value)
            entries.append(f"{json.dumps(key)}: {as_json(value)}")
        return "{" + ", ".join(entries) + "}"
    if isinstance(values, list):
        return "[" + ", ".join(map(as_json, values)) + "]"
    return json.dumps(values)


def plain(values):
    """What a reader makes of values in which a marked key stands twice."""
    return json.loads(as_json(values))


# ---- tensors ---------------------------------------------------------------------------------------------------------
def drop(tensors, name, draw):
    del tensors[name]


def rename(tensors, name, draw):
    tensors[draw.choice((name + "s", name[:-1], name.upper(), "x", name.replace(".", "_")))] = tensors.pop(name)


def add(tensors, name, draw):
    tensors[draw.choice((name + "2", "x", "factors/x", "also/x"))] = tensors[name].clone()


def swap(tensors, name, draw):
    other = draw.choice(sorted(tensors))
    tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()


def convert(tensors, name, draw):
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    tensors[name] = tensors[name].to(draw.choice(dtypes))


def reshape(tensors, name, draw):
    tensor = tensors[name]
    shapes = (tensor.flatten(), tensor[None], tensor.mT if tensor.ndim > 1 else tensor[..., None], tensor.new_empty(0))
    longer = tensor.flatten().repeat(2) if tensor.ndim < 2 else torch.cat((tensor, tensor))
    shorter = tensor[:-1] if tensor.ndim else tensor[None].repeat(3)
    tensors[name] = draw.choice((*shapes, longer, shorter)).contiguous()


def put_not_finite(tensors, name, draw):
    if tensors[name].is_floating_point() and tensors[name].numel():
        flat = tensors[name].clone().flatten()
        flat[draw.randrange(len(flat))] = draw.choice((float("nan"), float("inf"), float("-inf")))
        tensors[name] = flat.reshape(tensors[name].shape)


def change_finite(tensors, name, draw):
    tensor = tensors[name]
    noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(draw.randrange(10**6)))
    changed = draw.choice((tensor * 2, tensor * 0, tensor + noise, -tensor, tensor * 1e6, tensor.flip(0)[...]))
    tensors[name] = changed.to(tensor.dtype).contiguous()


def make_huge(tensors, name, draw):
    if tensors[name].is_floating_point():
        tensors[name] = torch.full_like(tensors[name], draw.choice((3e38, -3e38, 1e30)))


TENSORS = (drop, rename, add, swap, convert, reshape, put_not_finite, put_not_finite, change_finite, make_huge)


def change_tensors(tensors, draw):
    """Change tensors by name in place; return the name of the change."""
    name = draw.choice(sorted(tensors))
    change = draw.choice(TENSORS)
    if change is change_finite and not tensors[name].ndim:
        change = put_not_finite
    change(tensors, name, draw)
    return f"{change.__name__} {name}"


# ---- safetensors files -----------------------------------------------------------------------------------------------
def with_header(content, header_text):
    """The file with another header."""
    size = struct.unpack("<Q", content[:8])[0]
    header = header_text.encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def change_header(content, draw):
    """Change names, dtypes, shapes and places of tensors as the header states them."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = change_values(header, draw)
    return f"header: {name}", with_header(content, as_json(header))


def change_contents(content, draw, seal):
    """Change the description or the tensors of a file of this library; `seal` computes its checksum again."""
    size = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    tensors, text = tensors_in(content), metadata.get("metalora")
    description = None if text is None else json.loads(text)
    if description is not None and draw.random() < 0.5:
        name = "description: " + change_values(description, draw)
    else:
        name = change_tensors(tensors, draw)
    if description is not None:
        if seal and isinstance(plain(description), dict):
            description["sha256"] = checksum(plain(description), tensors)
        metadata["metalora"] = as_json(description)
    return name, file_of(tensors, metadata or None)


def change_safetensors(content, draw, seal):
    if seal or draw.random() < 0.6:
        return change_contents(content, draw, seal)
    return change_header(content, draw)


# ---- texts -----------------------------------------------------------------------------------------------------------
def change_json(content, draw, seal):
    values = json.loads(content)
    name = change_values(values, draw)
    return name, as_json(values).encode("utf-8", "surrogatepass")


def change_yaml(content, draw, seal):
    """Change one line of a file of `key: value` lines: its value, its key, its place, or how often it is there."""
    lines = content.decode().splitlines()
    number = draw.randrange(len(lines))
    key, _, value = lines[number].partition(":")
    words = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}
    wrong = hostile(draw)
    text = words.get(str(wrong), as_json(plain(wrong)))
    changes = {
        "value": [f"{key}: {text}"],
        "number": [f"{key}: {draw.choice(HOSTILE_NUMBERS)}"],
        "key": [f"{key}s:{value}"],
        "twice": [lines[number], f"{key}: {text}"],
        "indent": ["  " + lines[number]],
        "alias": [f"{key}: &a [*a]"],
        "tag": [f"{key}: !!python/object/apply:os.getcwd []"],
        "removed": [],
    }
    name = draw.choice(("value", "value", "number", "number", *changes))
    lines[number : number + 1] = changes[name]
    return f"{name} {key.strip()}", "\n".join(lines).encode()


STRUCTURED = {".json": change_json, ".yaml": change_yaml, ".safetensors": change_safetensors}


# ---- files and folders -----------------------------------------------------------------------------------------------
def mutate(path: Path, stranger: Path, draw: random.Random, seal: bool) -> str:
    """Damage a file, or a file of a folder, in place.

    Args:
        path: The file or the folder.
        stranger: The same of another owner.
        draw: Where random numbers come from.
        seal: Whether the attacker computes checksums again; bytes are not damaged then.

    Returns:
        What was done.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix in STRUCTURED) if path.is_dir() else [path]
    file = draw.choice(files)
    if draw.random() < 0.04:
        return _replace_file(file, stranger / file.relative_to(path) if path.is_dir() else stranger, draw)
    content = file.read_bytes()
    if not seal and draw.random() < 0.35:
        change = draw.choice(BYTES)
        file.write_bytes(change(content, draw))
        return f"{change.__name__} in {file.suffix}"
    name, changed = STRUCTURED[file.suffix](content, draw, seal)
    file.write_bytes(changed)
    return name


def _replace_file(file, other, draw):
    """Remove a file, or put that of another owner or an empty folder in its place."""
    kind = draw.choice(("another owner", "another owner", "removed", "a folder"))
    file.unlink()
    if kind == "another owner":
        shutil.copy(other, file)
    elif kind == "a folder":
        file.mkdir()
    return kind
