"""Packages of emoji drawings that tests make and serve themselves."""

import base64
import hashlib
import io
import json
import tarfile
from http.server import SimpleHTTPRequestHandler

import torch
from PIL import Image, ImageDraw

from metalora_papers.metalora import emoji
from metalora_papers.metalora.emoji_packages import PACKAGES, Package

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
ALIKE = ("1F46A", "1F46B")  # every vendor draws these two alike


def entry(unified, name, category, subcategory, tones=()):
    variations = {tone: {"image": f"{unified}-{tone}.png"} for tone in tones}
    more = {"skin_variations": variations} if tones else {}
    return {
        "unified": unified, "name": name, "category": category, "subcategory": subcategory,
        "image": f"{unified}.png", **more,
    }  # fmt: skip


def entries():
    """60 animals, 20 roles with five tones each, and emoji of which a rule speaks."""
    animals = [entry(f"1F4{k:02}", f"ANIMAL {k}", "Animals & Nature", "animal-mammal") for k in range(60)]
    people = emoji.PEOPLE
    roles = [entry(f"1F8{k:02}", f"{word} FARMER", people, "person-role", TONES)
             for k, word in enumerate(["MAN", "WOMAN"] * 10)]  # fmt: skip
    special = [
        entry("1F473", "MAN WITH TURBAN", people, "person-role"),
        entry("1F473-200D-2640-FE0F", "WOMAN WEARING TURBAN", people, "person-role"),
        entry("1F473-200D-2642-FE0F", "MAN WEARING TURBAN", people, "person-role"),
        entry("1F6B6", "PEDESTRIAN", people, "person-activity"),
        entry("1F6B6-200D-27A1-FE0F", "PERSON WALKING FACING RIGHT", people, "person-activity"),
        entry(ALIKE[0], "FAMILY: MAN, BOY", people, "family"),
        entry(ALIKE[1], "FAMILY: WOMAN, BOY", people, "family", ("1F3FB-1F3FB", "1F3FB-1F3FC")),
        entry("1F3FB", "FITZPATRICK TYPE", "Component", "skin-tone"),
    ]
    return [*animals, *roles, *special]


def drawing(seed):
    """A random ellipse on a transparent ground, as the bytes of a PNG."""
    numbers = torch.randint(0, 30, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
    picture = Image.new("RGBA", (64, 64))
    colour = tuple(8 * number for number in numbers[:3])
    ImageDraw.Draw(picture).ellipse((1 + numbers[3], 2, 33 + numbers[4], 60), fill=colour)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def archive(vendor, number):
    """The package of a vendor, as the registry would send it."""
    files = {"package/emoji.json": json.dumps(entries()).encode(), "package/README.md": b"read me"}
    for k, item in enumerate(entries()):
        seed = 1 if item["unified"] in ALIKE else 1000 * number + 10 * k
        for j, details in enumerate([item, *item.get("skin_variations", {}).values()]):
            files[f"package/img/{vendor}/64/{details['image']}"] = drawing(seed + j)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as target:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def write_registry(root):
    """Write the packages of two vendors as a registry has them below `root`; return the packages by vendor."""
    packages = {}
    for number, vendor in enumerate(("google", "apple")):
        content = archive(vendor, number + 1)
        integrity = base64.b64encode(hashlib.sha512(content).digest()).decode()
        packages[vendor] = package = Package(vendor, PACKAGES[vendor].version, integrity)
        folder = root / package.name / "-"
        folder.mkdir(parents=True)
        (folder / f"{package.name}-{package.version}.tgz").write_bytes(content)
    return packages
