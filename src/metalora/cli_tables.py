"""The verbs of `metalora table`: one for each comparison of a paper."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from metalora.config import from_dict, read_yaml
from metalora.experiments.config import TEXT_TABLES, TableConfig, TextTableConfig

T = TypeVar("T", TableConfig, TextTableConfig)
Config = Annotated[Path | None, tyro.conf.arg(help="YAML of the same fields, read before the flags")]
Out = Annotated[Path, tyro.conf.arg(help="folder of rows, adapters, tables and plots")]
Rows = Annotated[Path | None, tyro.conf.arg(help="report from this file of rows; nothing is run")]
Workers = Annotated[int, tyro.conf.arg(help="processes, one thread each")]
Json = Annotated[bool, tyro.conf.arg(help="print one JSON object instead of a table")]
IMAGES = {
    "metalora": (
        TableConfig(),
        "Compare Original, LoRA, Multi-LoRA, MoE-LoRA and MetaLoRA CP and TR by k-NN (Table I of arXiv:2504.00460).",
    ),
    "tenslora-vit": (
        TableConfig(compare="tenslora", suite="natural", backbone="vit", rank=8, seeds=(0, 1, 2, 3, 4)),
        "TensLoRA on a small ViT: its constructions at LoRA's rank and at its number of parameters.",
    ),
}


def table() -> None:
    """Compare methods as a paper does: `table metalora` (Table I), `table metatt-2` (Table 2), ...; table --help."""
    raise ValueError(f"table: name one of {', '.join(TABLES)}")


def _images(name: str) -> Callable[..., None]:
    default, description = IMAGES[name]

    def verb(
        table: Annotated[TableConfig, tyro.conf.arg(name="")] = default,
        config: Config = None,
        demo: Annotated[bool, tyro.conf.arg(help="one seed, few steps, then load the adapter and predict")] = False,
        out: Out = Path(f"runs/{name}"),
        rows: Rows = None,
        workers: Workers = 2,
        json: Json = False,
    ) -> None:
        from metalora.experiments.tables import run_table

        chosen = _over_file(table, config, default)
        run_table(chosen, out, workers=workers, demo=demo, as_json=json, rows_file=rows)

    verb.__doc__ = description
    return verb


def _text(name: str) -> Callable[..., None]:
    paper = "TensLoRA" if name == "tenslora" else "MetaTT (arXiv:2506.09105)"

    def verb(
        table: Annotated[TextTableConfig, tyro.conf.arg(name="")] = TextTableConfig(),  # noqa: B008 (frozen)
        config: Config = None,
        out: Out = Path("runs/metatt"),
        rows: Rows = None,
        workers: Workers = 2,
        json: Json = False,
    ) -> None:
        from metalora.experiments.tables import run_text_table

        chosen = _over_file(table, config, TextTableConfig())
        run_text_table(name, chosen, out, workers=workers, as_json=json, rows_file=rows)

    verb.__doc__ = f"{paper} on text: {TEXT_TABLES[name]}."
    return verb


def _over_file(table: T, path: Path | None, default: T) -> T:
    """The default with the file's fields over it, and over them the flags on the command line, also those that are set
    to their default."""
    if path is None:
        return table
    words = (word.removeprefix("--") for word in sys.argv if word.startswith("--"))
    flags = {word.partition("=")[0].partition(".")[0].replace("-", "_") for word in words}
    fields = (field.name for field in dataclasses.fields(table))
    given = {name: getattr(table, name) for name in fields if flags & {name, f"no_{name}"}}
    values = read_yaml(path)
    loaded = from_dict(type(table), values, str(path))
    return dataclasses.replace(default, **{name: getattr(loaded, name) for name in values} | given)


TABLES = {**{name: _images(name) for name in IMAGES}, **{name: _text(name) for name in TEXT_TABLES}}
