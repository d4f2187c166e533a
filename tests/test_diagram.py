"""Tensor diagrams of all methods: well-formed, complete, and no label on a line, on a node or on another label."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from itertools import combinations
from math import hypot

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach
from metalora.diagram import draw
from metalora.methods.registry import METHODS
from support.command import metalora_command

SVG = "{http://www.w3.org/2000/svg}"
LAYER = {"in": 768, "out": 3072}
KERNEL = {"kh": 3, "kw": 3}


def elements(picture, kind):
    """The groups of one class."""
    groups = ElementTree.fromstring(picture).iter(f"{SVG}g")
    return [group for group in groups if kind in group.get("class").split() and "legend" not in group.get("class")]


def texts(picture):
    return [text.text for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def declared_terms(method):
    """Factor -> modes of each term of the declaration, and of the factors that are outside of the terms."""
    specs = {name: [*modes] for name, modes in method.network.factors.items()}
    outside = set(method.separate_factors)
    terms = method.network.terms or [[name for name in specs if name not in outside]]
    return [{name: specs[name] for name in term} for term in terms], {name: specs[name] for name in outside}


@pytest.mark.parametrize("name", METHODS)
def test_every_factor_bond_and_leg_is_drawn_once(name):
    method = METHODS[name]
    picture = draw(name)
    terms, outside = declared_terms(method)
    factors = [factor for term in [*terms, outside] for factor in term]
    assert Counter(group.get("data-factor") for group in elements(picture, "factor")) == Counter(factors)
    bonds, legs = Counter(), Counter()
    for term in terms:
        uses = Counter(mode for modes in term.values() for mode in modes)
        joined = {mode for mode, count in uses.items() if count > 1 and mode in (*method.network.bonds, "expert")}
        bonds.update({mode: 1 for mode in joined})
        legs.update((factor, mode) for factor, modes in term.items() for mode in modes if mode not in joined)
    legs.update((factor, mode) for factor, modes in outside.items() for mode in modes)
    assert Counter(group.get("data-mode") for group in elements(picture, "bond")) == bonds
    assert Counter((leg.get("data-factor"), leg.get("data-mode")) for leg in elements(picture, "leg")) == legs
    for group in elements(picture, "bond"):  # a line to each of its factors
        ends = {(line.get(f"x{end}"), line.get(f"y{end}")) for line in group.iter(f"{SVG}line") for end in (1, 2)}
        members = [sum(group.get("data-mode") in modes for modes in term.values()) for term in terms]
        nodes = {circle_centre(node) for node in elements(picture, "factor")}
        assert len(ends & nodes) in members


def circle_centre(group):
    circle = group.find(f"{SVG}circle")
    return circle.get("cx"), circle.get("cy")


def boxes_of_texts(root):
    """(text, left, top, right, bottom) of every label, in a font whose characters are 0.6 of its size wide."""
    boxes = []
    for text in root.iter(f"{SVG}text"):
        x, y, half = float(text.get("x")), float(text.get("y")), 0.3 * 12 * len(text.text)
        boxes.append((text.text, x - half, y - 6, x + half, y + 6))
    return boxes


def hits(line, box, steps=200):
    """Whether a line passes through a box."""
    (x1, y1), (x2, y2) = line
    points = [(x1 + (x2 - x1) * t / steps, y1 + (y2 - y1) * t / steps) for t in range(steps + 1)]
    return any(box[1] < x < box[3] and box[2] < y < box[4] for x, y in points)


def distance_to_box(point, box):
    x = max(box[1] - point[0], 0, point[0] - box[3])
    y = max(box[2] - point[1], 0, point[1] - box[4])
    return hypot(x, y)


@pytest.mark.parametrize("sizes", (None, LAYER, LAYER | KERNEL), ids=("declared", "linear", "convolution"))
@pytest.mark.parametrize("name", METHODS)
def test_nothing_overlaps(name, sizes):
    modes = METHODS[name].network.modes
    sizes = sizes and {mode: size for mode, size in sizes.items() if mode in modes}
    root = ElementTree.fromstring(draw(AdapterConfig(name, rank=16), sizes))
    boxes = boxes_of_texts(root)
    for first, second in combinations(boxes, 2):
        apart = first[3] < second[1] or second[3] < first[1] or first[4] < second[2] or second[4] < first[2]
        assert apart, (first[0], second[0])
    lines = [
        tuple((float(line.get(f"x{end}")), float(line.get(f"y{end}"))) for end in (1, 2))
        for line in root.iter(f"{SVG}line")
    ]
    names = {factor for factor in METHODS[name].network.factors}
    nodes = [
        (float(group.find(f"{SVG}circle").get("cx")), float(group.find(f"{SVG}circle").get("cy")))
        for group in root.iter(f"{SVG}g")
        if group.get("data-factor") in names and "factor" in group.get("class").split()
    ]
    for box in boxes:
        centre = ((box[1] + box[3]) / 2, (box[2] + box[4]) / 2)
        if any(hypot(centre[0] - x, centre[1] - y) < 1 for x, y in nodes):
            assert box[3] - box[1] < 52  # the name of a factor is inside its node
            continue
        assert not any(hits(line, box) for line in lines), box[0]
        assert all(distance_to_box(node, box) > 26 for node in nodes), box[0]
    for first, second in combinations(nodes, 2):
        assert hypot(first[0] - second[0], first[1] - second[1]) > 60
    left, top, width, height = map(float, root.get("viewBox").split())
    assert all(left <= b[1] and top <= b[2] and b[3] <= left + width and b[4] <= top + height for b in boxes)


def nodes_of(picture):
    return {group.get("data-factor"): tuple(map(float, circle_centre(group))) for group in elements(picture, "factor")}


def test_the_layouts_of_the_papers():
    chain = nodes_of(draw("metatt-5d"))
    assert len({y for _, y in chain.values()}) == 1 and [*chain] == sorted(chain, key=lambda name: chain[name][0])
    tucker = nodes_of(draw("tenslora-qkv-depth"))
    core = tucker.pop("core")
    distances = {round(hypot(x - core[0], y - core[1])) for x, y in tucker.values()}
    assert len(distances) == 1 and len(tucker) == 4
    ring = nodes_of(draw("tenslora-att-qkv-depth-ring"))
    centre = [sum(axis) / 5 for axis in zip(*ring.values(), strict=True)]
    assert len({round(hypot(x - centre[0], y - centre[1])) for x, y in ring.values()}) == 1
    cp = ElementTree.fromstring(draw("metalora-cp"))
    assert len([c for c in cp.iter(f"{SVG}circle") if c.get("class") == "dot"]) == 1


def styles(picture):
    return {group.get("data-factor"): group.get("class").split()[1] for group in elements(picture, "factor")}


def test_colours_say_what_is_generated_and_what_is_frozen():
    assert styles(draw("metalora-tr")) == {"A": "learned", "B": "learned", "C": "generated"}
    assert styles(draw(AdapterConfig("lora", generated=("B",)))) == {"A": "learned", "B": "generated"}
    assert styles(draw("vera")) == {"A": "frozen", "d": "learned", "B": "frozen", "b": "learned"}
    assert styles(draw("pissa")) == {"A": "learned", "B": "learned", "A_0": "frozen", "B_0": "frozen"}


def test_sizes_of_numbers_of_a_configuration_and_of_an_adapter():
    labels = texts(draw(AdapterConfig("metatt-4d", rank=(2, 3, 4)), {**LAYER, "layer": 12}))
    assert {"r1 = 2", "r2 = 3", "r3 = 4", "in = 768", "out = 3072", "layer = 12", "proj"} <= {*labels}
    assert "kh" in texts(draw("lora")) and "kh" not in labels and "kh = 3" in texts(draw("lora", LAYER | KERNEL))
    layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(8, 6), "value": nn.Linear(8, 6)}) for _ in range(3))
    adapter = attach(nn.ModuleDict({"layers": layers}), AdapterConfig("metatt-4d", rank=2, targets="query,value"))
    labels = {*texts(draw(adapter))}
    assert {"in = 8", "layer = 3", "proj = 2", "out = 6", "r1 = 2"} <= labels and not {"kh", "kw"} & labels
    torch.manual_seed(0)
    conv = attach(nn.Sequential(nn.Conv2d(3, 5, (2, 4))), AdapterConfig("lora", rank=2, targets="0"))
    assert {"kh = 2", "kw = 4", "in = 3", "out = 5"} <= {*texts(draw(conv))}


BAD = {
    "unknown method": (("lroa",), "unknown method 'lroa'; did you mean 'lora'"),
    "unknown mode": (("lora", {"ni": 8}), "method 'lora' has no mode 'ni'"),
    "size zero": (("lora", {"in": 0}), "the size of 'in' is 0, expected at least 1"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_mistakes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


def test_the_command_draws_a_method_and_a_method_on_a_model(tmp_path):
    path = tmp_path / "picture.svg"
    code, out, _ = metalora_command(
        "inspect", "--draw", path, "--method", "metatt-4d", "--rank", 4, "--sizes", "in", 768, "layer", 12
    )
    assert code == 0 and str(path) in out
    assert {"in = 768", "layer = 12", "r1 = 4"} <= {*texts(path.read_text(encoding="utf-8"))}
    code, _, _ = metalora_command(
        "inspect", "--draw", path, "--overwrite", "--model", "timm:resnet18", "--targets", "layer1.*.conv1"
    )
    assert code == 0 and {"in = 64", "kh = 3", "r = 8"} <= {*texts(path.read_text(encoding="utf-8"))}
    other = tmp_path / "other.svg"
    for arguments, message in [
        (("--sizes", "in", 8), "--sizes are for --draw"),
        (("--draw", other, "--model", "timm:resnet18", "--sizes", "in", 8), "--sizes are for a method without --model"),
        (("--draw", tmp_path / "missing" / "picture.svg"), "there is no folder"),
        (("--draw", other, "--file", path), "--draw takes a method or --model, not a file"),
    ]:
        code, _, error = metalora_command("inspect", *arguments)
        assert code == 2 and message in error
