"""Names of tensors in LoRA files: which module each one belongs to, and which part of its update it is.

One part has many names: `lora_A.weight` (PEFT), `lora_A.default.weight` (PEFT with the adapter's name),
`lora_down.weight` (kohya, ComfyUI), `lora.down.weight` and `to_q_lora.down.weight` (diffusers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from metalora._util.shown import shown
from metalora.io.lora.lycoris import MAGNITUDE, SUFFIXES

PREFIX = "base_model.model."  # of the name of every tensor of PEFT
DOWN, UP = "lora_down.weight", "lora_up.weight"
BIAS = "lora_B.bias"
HALVES = {"A": DOWN, "B": UP, "down": DOWN, "up": UP}
PATTERNS = (
    # In "lora_A.NAME.weight" NAME is that of the adapter, and no part of the module's path.
    (re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.(?P<adapter>[^.]+))?\.weight"), ""),
    (re.compile(r"(?P<module>.+)\.lora_embedding_(?P<half>[AB])(\.(?P<adapter>[^.]+))?"), ""),
    (re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.(?P<adapter>(?!weight$)[^.]+))?(\.weight)?"), MAGNITUDE),
    (re.compile(r"(?P<module>.+)\.(lora|lora_linear_layer)\.(?P<half>down|up)\.weight"), ""),
    (re.compile(r"(?P<module>.+\.processor\.to_(q|k|v|out))_lora\.(?P<half>down|up)\.weight"), ""),
    (re.compile(r"(?P<module>.+)\.lora\.alpha"), "alpha"),
    *((re.compile(rf"(?P<module>.+)\.{re.escape(suffix)}"), suffix) for suffix in SUFFIXES),
)
"""Expression of a whole name -> the part, or nothing if the half says it."""


class PartName(NamedTuple):
    """What the name of a tensor says.

    Attributes:
        module: Name of the module, without PEFT's prefix.
        part: The part as kohya and LyCORIS call it, such as "lora_down.weight" or "alpha".
        adapter: Name of the adapter if the name of the tensor has it, otherwise empty.
    """

    module: str
    part: str
    adapter: str


def parse_name(name: str) -> PartName | None:
    """Return what the name of a tensor says, or None if it is no part of a LoRA.

    Example:
        >>> parse_name("base_model.model.fc.lora_A.default.weight")
        PartName(module='fc', part='lora_down.weight', adapter='default')
        >>> parse_name("unet.attn1.processor.to_out_lora.up.weight").module
        'unet.attn1.to_out.0'
    """
    for pattern, part in PATTERNS:
        match = pattern.fullmatch(name.removeprefix(PREFIX))
        if match:
            fields = match.groupdict()
            module = _without_processor(fields["module"])
            return PartName(module, part or HALVES[fields["half"]], fields.get("adapter") or "")
    return None


def _without_processor(module: str) -> str:
    """Return the module that an attention processor of an old diffusers adapts: its own paths end in to_out.0."""
    path = module.replace(".processor.to_", ".to_")
    return f"{path}.0" if path != module and path.endswith(".to_out") else path


def group_tensors(tensors: Mapping[str, Tensor], source: object) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Group the tensors of a file by module.

    Args:
        tensors: Name -> tensor.
        source: The file, for error messages.

    Returns:
        Module name -> part -> tensor, sorted by name so that the order in the file means nothing; and the names of the
        tensors that are no part of a LoRA.

    Raises:
        ValueError: Two tensors are the same part of a module, or the file holds several adapters.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    names: dict[tuple[str, str], str] = {}
    adapters: dict[str, str] = {}
    others = []
    for name in sorted(tensors):
        parsed = parse_name(name)
        if parsed is None:
            others.append(name)
            continue
        first = names.setdefault((parsed.module, parsed.part), name)
        if first != name:
            raise ValueError(
                f"{source}: {shown(parsed.module)} has {parsed.part} twice, as {shown(first)} and {shown(name)}"
            )
        adapters.setdefault(parsed.adapter, name)
        groups.setdefault(parsed.module, {})[parsed.part] = tensors[name]
    check_one_adapter(sorted(filter(None, adapters)), source)
    return groups, others


def check_one_adapter(adapters: Sequence[str], source: object) -> None:
    """Raise a ValueError if the names of tensors hold the names of several adapters.

    Example:
        >>> check_one_adapter(["default", "style"], "FILE")
        Traceback (most recent call last):
        ValueError: FILE: holds several adapters, 'default' and 'style': save each in a file of its own
    """
    if len(adapters) > 1:
        raise ValueError(
            f"{source}: holds several adapters, {shown(adapters[0])} and {shown(adapters[1])}: save each in a file of "
            "its own"
        )
