"""Suite "emoji": real drawings of four vendors, labelled in seven ways; support and queries share no emoji."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.emoji_colours import Colours, fill_level, main_hue
from metalora_papers.metalora.emoji_packages import VENDORS, Drawings, read_drawings
from metalora_papers.metalora.labelled_items import MISSING, LabelledItems, Notion, parts_by_group

TRAINED = ("vendor", "category", "hue", "filled")
NEVER_TRAINED = ("skin", "gender", "people")
SHARES = (0.6, 0.15, 0.25)  # of the emoji, in train, val and test
SPLIT_SEED = 20240229

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
PEOPLE = "People & Body"
SKIN_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
FEMALE, MALE, FACING_RIGHT = "2640", "2642", "-200D-27A1-FE0F"
FEMALE_WORDS = {"WOMAN", "WOMEN", "GIRL", "PRINCESS", "MOTHER", "BREAST-FEEDING"}
MALE_WORDS = {"MAN", "MEN", "BOY", "PRINCE", "FATHER"}
GENDERS = ("man", "woman")
FEWEST_EMOJI = 20  # of a sub-category of people that is a class


@dataclass(frozen=True)
class Variant:
    """One emoji in one skin tone, of one vendor.

    Attributes:
        vendor: Name of the vendor.
        entry: Number of the emoji in emoji.json.
        tones: The codes of its skin tones; empty without one.
        file: Name of the file of the drawing.
    """

    vendor: str
    entry: int
    tones: str
    file: str


def load_emoji(
    vendors: Sequence[str] = VENDORS, folder: str | Path | None = None, *, left_out: str | None = None
) -> LabelledItems:
    """Load the drawings, their labels, and the parts of the suite.

    Trained columns: vendor, category, hue (the main one; missing for grey drawings) and filled (share of the pixels
    that are not white, in four bins). Never trained: skin (tone), gender, and people (the sub-category of an emoji of
    people or bodies). A group is an emoji with all its skin tones and vendors. Emoji that some vendor draws alike, or
    that are mirror images of each other, are one group.

    Args:
        vendors: Names of vendors.
        folder: Where the drawings are kept; None: the cache.
        left_out: A vendor whose drawings are in the part "test" alone, which then has no other drawings.

    Returns:
        The suite; pictures uint8 (drawings, 64, 64, 3).

    Raises:
        ValueError: A vendor is not known, or its drawings were not fetched.
    """
    if left_out is not None:
        check_choice("vendor", left_out, tuple(vendors))
    return emoji_suite([read_drawings(vendor, folder) for vendor in vendors], left_out=left_out)


def emoji_suite(drawings: Sequence[Drawings], *, left_out: str | None = None) -> LabelledItems:
    """Label drawings and divide them into parts; see `load_emoji`.

    Args:
        drawings: The drawings of each vendor.
        left_out: A vendor whose drawings are in the part "test" alone.
    """
    entries = drawings[0].entries
    by_vendor = [_variants(source) for source in drawings]
    variants = [variant for shown in by_vendor for variant in shown]
    numbers = [
        torch.tensor([source.files[variant.file] for variant in shown])
        for source, shown in zip(drawings, by_vendor, strict=True)
    ]
    images = torch.cat([source.images[rows] for source, rows in zip(drawings, numbers, strict=True)])
    colours = _joined([source.colours for source in drawings], numbers)
    notions = {
        "vendor": _notion([variant.vendor for variant in variants]),
        "category": _notion([entries[variant.entry]["category"] for variant in variants], CATEGORIES),
        "hue": main_hue(colours),
        "filled": fill_level(colours),
        "skin": _notion([skin_tone(variant.tones) for variant in variants], tuple(SKIN_TONES.values())),
        "gender": _per_emoji(variants, genders(entries), GENDERS),
        "people": _per_emoji(variants, people(entries), tuple(sorted(set(people(entries)) - {""}))),
    }
    groups = emoji_groups(entries, variants, images)
    strata = _notion([_stratum(entries[variant.entry]) for variant in variants]).codes
    parts = parts_by_group(groups, strata, SHARES, SPLIT_SEED)
    if left_out is not None:
        parts = _without_vendor(parts, notions["vendor"], left_out)
    return LabelledItems("emoji", images, notions, groups, parts, TRAINED, NEVER_TRAINED)


def _variants(source: Drawings) -> list[Variant]:
    """The emoji of a vendor, and those with skin tones, as far as the vendor draws them."""
    variants = []
    for number, entry in enumerate(source.entries):
        if entry["category"] not in CATEGORIES:
            continue
        for tones, details in [("", entry), *entry.get("skin_variations", {}).items()]:
            if details["image"] in source.files:
                variants.append(Variant(source.vendor, number, tones, details["image"]))
    return variants


def _joined(colours: Sequence[Colours], numbers: Sequence[Tensor]) -> Colours:
    """The measurements of the drawings of several vendors."""
    pairs = list(zip(colours, numbers, strict=True))
    return Colours(
        hue=torch.cat([source.hue[rows] for source, rows in pairs]),
        coloured=torch.cat([source.coloured[rows] for source, rows in pairs]),
        drawn=torch.cat([source.drawn[rows] for source, rows in pairs]),
    )


def _notion(values: Sequence[str], class_names: tuple[str, ...] | None = None) -> Notion:
    """Codes of values; a value that is not a class, such as an empty one, is missing."""
    class_names = class_names or tuple(sorted(set(values)))
    numbers = {name: number for number, name in enumerate(class_names)}
    return Notion(torch.tensor([numbers.get(value, MISSING) for value in values]), class_names)


def _per_emoji(variants: Sequence[Variant], values: Sequence[str], class_names: tuple[str, ...]) -> Notion:
    return _notion([values[variant.entry] for variant in variants], class_names)


def _without_vendor(parts: dict[str, Tensor], vendor: Notion, left_out: str) -> dict[str, Tensor]:
    """Parts in which only "test" has drawings of a vendor, and no others."""
    is_left_out = vendor.codes == vendor.class_names.index(left_out)
    return {name: rows[is_left_out[rows] == (name == "test")] for name, rows in parts.items()}


# ---- labels of emoji.json -------------------------------------------------------------------------------------------
def skin_tone(tones: str) -> str:
    """Name of a skin tone; empty if there is none, or if two people have two tones.

    Args:
        tones: Codes of Unicode, such as "1F3FB" or "1F3FB-1F3FF".
    """
    different = set(tones.split("-"))
    return SKIN_TONES.get(different.pop(), "") if len(different) == 1 else ""


def people(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Sub-category of every emoji of people or bodies; those of hands are one. Empty for other emoji.

    Sub-categories with fewer than 20 emoji are empty too: a test part would have too few for two sides.
    """
    names = [
        re.sub("^hand.*", "hand", entry["subcategory"]) if entry["category"] == PEOPLE else "" for entry in entries
    ]
    counts = Counter(names)
    return [name if counts[name] >= FEWEST_EMOJI else "" for name in names]


def genders(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Gender of every emoji that shows one person, "man" or "woman"; empty if it says none, and for the others.

    The sign of a gender in the code decides. Otherwise, an emoji that also exists with such a sign has no gender,
    whatever its old name says ("MAN WITH TURBAN"), and then the words of the name decide.
    """
    with_sign = {_codes(entry)[0] for entry in entries if {FEMALE, MALE} & set(_codes(entry))}
    return [_gender(entry, with_sign) for entry in entries]


def _codes(entry: dict[str, Any]) -> list[str]:
    codes: list[str] = entry["unified"].split("-")
    return codes


def _gender(entry: dict[str, Any], with_sign: set[str]) -> str:
    if entry["category"] != PEOPLE or not re.fullmatch("person(-(?!symbol).*)?", entry["subcategory"]):
        return ""
    codes, words = _codes(entry), set(re.findall("[A-Z-]+", entry["name"].upper()))
    if FEMALE in codes:
        return "woman"
    if MALE in codes:
        return "man"
    if codes[0] in with_sign:
        return ""
    return "woman" if words & FEMALE_WORDS else "man" if words & MALE_WORDS else ""


def _stratum(entry: dict[str, Any]) -> str:
    return str(entry["subcategory"] if entry["category"] == PEOPLE else entry["category"])


# ---- groups ---------------------------------------------------------------------------------------------------------
def emoji_groups(entries: Sequence[dict[str, Any]], variants: Sequence[Variant], images: Tensor) -> Tensor:
    """Number of the group of every drawing, int64 (drawings,).

    Drawings of one emoji are one group. So are an emoji and its mirror image ("facing right"), and emoji that share a
    drawing: Apple, for example, draws ten kinds of families alike.

    Args:
        entries: The emoji of emoji.json.
        variants: What each drawing shows.
        images: The drawings, uint8 (drawings, h, w, 3).
    """
    numbers = {entry["unified"]: number for number, entry in enumerate(entries)}
    group = [numbers.get(entry["unified"].removesuffix(FACING_RIGHT), k) for k, entry in enumerate(entries)]
    first_with: dict[bytes, int] = {}
    for variant, image in zip(variants, images.numpy(), strict=True):
        digest = hashlib.sha256(image.tobytes()).digest()
        _join(group, variant.entry, first_with.setdefault(digest, variant.entry))
    return torch.tensor([_root(group, variant.entry) for variant in variants])


def _root(group: list[int], entry: int) -> int:
    """The emoji that stands for the group of an emoji; `group` is a forest whose links lead there."""
    while group[entry] != entry:
        entry = group[entry]
    return entry


def _join(group: list[int], first: int, second: int) -> None:
    group[_root(group, first)] = _root(group, second)
