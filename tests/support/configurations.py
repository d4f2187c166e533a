"""All configurations of a package, and what `help` says about them."""

import dataclasses
import pkgutil
import pydoc
import re
from importlib import import_module

from metalora.config import Configuration


def configurations_of(package):
    """The configurations that the modules of a package define, by name."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        if name.rpartition(".")[2] in ("config", "recommendation") or name.endswith("_config"):
            import_module(name)
    below = _below(Configuration)
    return {cls.__name__: cls for cls in below if cls.__module__.partition(".")[0] == package.__name__}


def _below(cls):
    return [found for child in cls.__subclasses__() for found in (child, *_below(child))]


def fields_without_help(cls):
    """The fields of a configuration of which `help` shows no text."""
    shown = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    described = set(re.findall(r"^ \|      (\w+): \S", shown.partition("Attributes:")[2], re.M))
    return [field.name for field in dataclasses.fields(cls) if field.name not in described]
