"""Which modules of a model the names in a LoRA file stand for: one rule for all names of a network.

The names of a file are paths in the model that it was trained on. This model may be a part of that one ("bert.encoder"
in a BertModel is "encoder"), or contain it. So one prefix is cut from all names, or put before all of them; the choice
never depends on the order of the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from metalora._util.shown import cut, shown
from metalora._util.suggest import nearest
from metalora.io.lora.stability_names import name_in_diffusers

KNOWN_PREFIX = re.compile(
    r"((lora|lycoris)_((prior_)?unet|(prior_)?te\d?|transformer|controlnet)|lora|lycoris"
    r"|(prior_)?unet|(prior_)?text_encoder(_\d)?|transformer(_\d)?|controlnet|diffusion_model)(?=[._])"
)
"""The prefixes of a whole network; behind them even a name of one component is a path."""
CHILDREN = {"lora_unet": "unet", "lora_transformer": "transformer", "lora_te": "text_encoder"} | {
    f"lora_te{number}": "text_encoder" if number == 1 else f"text_encoder_{number}" for number in (1, 2, 3)
}
"""Prefix of a network in kohya's files -> its name in a pipeline of diffusers."""
SIDES = (("encoder", "decoder"), ("decoder", "encoder"), ("text", "vision"), ("vision", "text"))
"""Parts of one model with equal paths, by words in the names of the parts and of their classes."""
EXAMPLES = 6  # choices in an error message


def place(
    names: Iterable[str], model: nn.Module, source: str | Path, network: str | None = None, flat: bool = False
) -> dict[str, str]:
    """Find the module of each name.

    Args:
        names: Names of modules in a file: dotted paths, or flattened ones ("lora_unet_mid_block_conv").
        model: The model to find the modules in.
        source: What the names were read from, for error messages.
        network: The prefix of the names to take ("unet", "lora_te1", "encoder"); the others are left out. None takes
            all of them.
        flat: Whether the names are flattened, with "_" in place of dots.

    Returns:
        Name -> path of its module, of the names that are taken.

    Raises:
        ValueError: A name stands for no module or for several, two names stand for one, or the file holds several
            networks and the model is not one that holds them all.

    Example:
        >>> model = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(2, 3)})})
        >>> place(["wrapped.block.fc"], model, "FILE")
        {'wrapped.block.fc': 'block.fc'}
    """
    joint = "_" if flat else "."
    all_names = sorted(names)
    taken = {name: name for name in all_names}
    if network is not None:
        taken = {name: name.removeprefix(network + joint) for name in all_names if name.startswith(network + joint)}
        if not taken:
            prefixes = list(_networks(all_names, joint))[:EXAMPLES]
            raise ValueError(f"{source}: has no network {shown(network)}{nearest(network, prefixes)}")
    if not taken:
        return {}
    index = ModuleIndex.of(model, joint)
    names_in_diffusers = {name: name_in_diffusers(rest, joint) for name, rest in taken.items()}
    for rest_by_name in (taken, names_in_diffusers):
        rests = [*rest_by_name.values()]
        paths = index.place(rests) or _place_by_network(rests, model, joint)
        if paths is not None and len(paths) == len(rests):
            if network is None:  # a person who names the part knows which it is
                _check_side(paths, model, joint, source)
            return {name: paths[rest] for name, rest in rest_by_name.items()}
    raise ValueError(f"{source}: {_problem([*taken.values()], index, type(model).__name__)}")


@dataclass(frozen=True)
class ModuleIndex:
    """The modules of a model by every end of their paths.

    Attributes:
        ends: End of a path, as names in the file would have it -> what stands before the end -> the paths.
        joint: What separates the components of names: "." or "_".
        longest: The largest number of components of an end.

    Example:
        >>> model = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(2, 3)})})
        >>> ModuleIndex.of(model, "_").ends["fc"]
        {'block': ['block.fc']}
    """

    ends: dict[str, dict[str, list[str]]]
    joint: str
    longest: int

    @classmethod
    def of(cls, model: nn.Module, joint: str) -> ModuleIndex:
        """Return the index of a model."""
        ends: dict[str, dict[str, list[str]]] = {}
        for path, _ in model.named_modules():
            components = path.split(".") if path else []
            for start in range(len(components)):
                lead, end = ".".join(components[:start]), joint.join(components[start:])
                ends.setdefault(end, {}).setdefault(lead, []).append(path)
        return cls(ends, joint, max((end.count(joint) + 1 for end in ends), default=0))

    def place(self, names: Sequence[str]) -> dict[str, str] | None:
        """Return the path of each name by the rule that fits all names and cuts least, or None if there is none."""
        candidates = self._candidates(min(names))
        fitting = [rule for rule in candidates if all(len(self._paths(name, rule)) == 1 for name in names)]
        rules = [rule for rule in fitting if self._says_enough(names, rule)]
        if not rules:
            return None
        # What is cut counts first, and as it is goes before "behind further components".
        best = min(rules, key=lambda rule: rule.order)
        if best.lead and sum(rule.cut == best.cut for rule in rules) > 1:
            return None
        paths = {name: self._paths(name, best)[0] for name in names}
        return paths if len(set(paths.values())) == len(paths) else None

    def paths_of(self, name: str) -> list[str]:
        """Return the paths that one name alone may stand for."""
        rules = [rule for rule in self._candidates(name) if self._says_enough([name], rule)]
        if not rules:
            return []
        best = min(rule.order for rule in rules)
        return [path for rule in rules if rule.order == best for path in self._paths(name, rule)]

    def _candidates(self, name: str) -> list[Rule]:
        """Return the rules by which a name has a module or several."""
        components = name.split(self.joint)
        rules = []
        for count in range(max(len(components) - self.longest, 0), len(components)):
            prefix = self.joint.join(components[:count])
            rest = self.joint.join(components[count:])
            for lead in self.ends.get(rest, {}):
                rule = Rule(prefix, self.joint, lead)
                if not (rule.cut_components and lead):  # nothing is both cut and put before
                    rules.append(rule)
        return rules

    def _says_enough(self, names: Sequence[str], rule: Rule) -> bool:
        """False if every name would lose all but its last component: "fc" alone may be any module."""
        return not rule.cut_components or any("." in path for name in names for path in self._paths(name, rule))

    def _paths(self, name: str, rule: Rule) -> list[str]:
        start = f"{rule.cut}{self.joint}" if rule.cut else ""
        return self.ends.get(name[len(start) :], {}).get(rule.lead, []) if name.startswith(start) else []


@dataclass(frozen=True)
class Rule:
    """What is cut from the front of all names, and what is put before them.

    Attributes:
        cut: The prefix that is cut.
        joint: What separates its components.
        lead: The path that is put before.

    Example:
        >>> Rule("lora_te_text_model", "_", "").cut_components
        ['text', 'model']
    """

    cut: str
    joint: str
    lead: str

    @property
    def cut_components(self) -> list[str]:
        """The components that are cut, without the known prefix of a network."""
        known = KNOWN_PREFIX.match(f"{self.cut}{self.joint}")
        rest = self.cut if known is None else self.cut[known.end() + 1 :]
        return rest.split(self.joint) if rest else []

    @property
    def order(self) -> tuple[int, bool, int]:
        """The smallest is the best: cut few components, put nothing before, and cut little."""
        return len(self.cut_components), bool(self.lead), len(self.cut)


# ---- several networks in one file -----------------------------------------------------------------------------------
def _place_by_network(names: Sequence[str], model: nn.Module, joint: str) -> dict[str, str] | None:
    """Place the names of each network in the child of the model that has its name; None if there is none for one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        known = KNOWN_PREFIX.match(name)
        groups.setdefault(name.split(joint)[0] if known is None else known[0], []).append(name)
    children = dict(model.named_children())
    paths: dict[str, str] = {}
    for prefix, members in groups.items():
        child = CHILDREN.get(prefix, prefix)
        placed = ModuleIndex.of(children[child], joint).place(members) if child in children else None
        if placed is None:
            return None
        paths |= {name: f"{child}.{path}" for name, path in placed.items()}
    return paths


def _networks(names: Sequence[str], joint: str) -> dict[str, list[str]]:
    """Return the names by the shortest prefix that tells them apart: {"lora_unet": [...], "lora_te": [...]}."""
    components = [name.split(joint) for name in names]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == components[0][shared] for parts in components):
        shared += 1
    groups: dict[str, list[str]] = {}
    for name, parts in zip(names, components, strict=True):
        groups.setdefault(joint.join(parts[: shared + 1]), []).append(name)
    return groups


# ---- towers ---------------------------------------------------------------------------------------------------------
def _check_side(paths: Mapping[str, str], model: nn.Module, joint: str, source: str | Path) -> None:
    """Raise a ValueError if the prefix that is cut is that of an encoder and the model a decoder, or the like.

    Both have equal paths and often equal shapes, so that nothing else would tell.
    """
    own = type(model).__name__.lower()
    if isinstance(getattr(model, "is_decoder", None), bool):  # T5 has one class for both
        own += " decoder" if model.is_decoder else " encoder"
    for name, path in paths.items():
        end = path.replace(".", joint)
        prefix = name.removesuffix(end).rstrip(joint) if name.endswith(end) else ""
        cut_part = joint.join(Rule(prefix, joint, "").cut_components)
        for word, other in SIDES:
            if word in cut_part and other not in cut_part and other in own and word not in own:
                raise ValueError(
                    f"{source}: {shown(name)} is a name of the {word}, and the {type(model).__name__} is that of the "
                    f"{other}; give network={prefix!r} if it is meant for this one"
                )


# ---- errors ---------------------------------------------------------------------------------------------------------
def _problem(names: Sequence[str], index: ModuleIndex, class_name: str) -> str:
    """Return why the names have no common place in a model."""
    names_by_path: dict[str, str] = {}
    fitting = {name: index.paths_of(name) for name in names}
    for name, paths in fitting.items():
        if len(paths) > 1:
            return f"{class_name} has {len(paths)} modules {shown(name)}: {_listed(paths)}"
    part = _part_hint(names, index)
    for name, paths in fitting.items():
        if paths and paths[0] in names_by_path:
            return (
                f"two updates of module {paths[0]!r}, by the names {shown(names_by_path[paths[0]])} and {shown(name)}"
                f"{part}"
            )
        names_by_path |= {path: name for path in paths}
    missing = [name for name, paths in fitting.items() if not paths]
    if missing:
        known = [end for end, leads in index.ends.items() if "" in leads]
        path = KNOWN_PREFIX.sub("", missing[0]).strip(index.joint)
        return f"{class_name} has no module {shown(missing[0])}{part or nearest(path, known)[:300]}"
    pairs = [f"{shown(name)} as {paths[0]!r}" for name, paths in fitting.items()]
    return f"no one prefix gives all names a module of {class_name}: {_listed([pairs[0], pairs[-1]])}{part}"


def _part_hint(names: Sequence[str], index: ModuleIndex) -> str:
    """Return how to load one network of a file that holds several, or nothing if it holds one."""
    # A prefix that is itself a name is a module, not a network.
    networks = {prefix: members for prefix, members in _networks(names, index.joint).items() if prefix not in names}
    fitting = [prefix for prefix, members in networks.items() if index.place(members) is not None]
    if len(networks) < 2 or not fitting:
        return ""
    return f"; to load a part of the file give network={_listed(map(repr, fitting), ' or ')}"


def _listed(values: Iterable[str], joint: str = ", ") -> str:
    listed = [cut(value) for value in values]
    return joint.join(listed[:EXAMPLES]) + (", ..." if len(listed) > EXAMPLES else "")
