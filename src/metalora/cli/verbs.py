"""The verbs of the command `metalora`; heavy imports are inside the verb."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from metalora.bench.config import BenchConfig
from metalora.cli.render import Json, print_json, show, status
from metalora.config import AdapterConfig
from metalora.methods import registry


def methods(
    markdown: Annotated[bool, tyro.conf.arg(help="print docs/methods.md")] = False,
    json: Json = False,
) -> None:
    """List every method: formula, source, parameters at one target (I in, O out, K kernel, R rank, N experts)."""
    if markdown:
        return print(registry.markdown(), end="")
    rows = [
        {"name": m.name, "formula": " ".join(m.formula.split()), "factors": dict(m.factors), "count": m.count,
         "export": m.export, "generated": list(m.generated), "source": m.source}
        for m in registry.METHODS.values()
    ]  # fmt: skip
    columns = ("name", "formula", "count", "export", "generated", "source")
    show(rows, json, "methods", columns, rows)


def inspect(
    model: Annotated[
        str | None, tyro.conf.arg(help="timm:NAME, torchvision:NAME, hf:FOLDER, efficientnet-lite0")
    ] = None,
    file: Annotated[Path | None, tyro.conf.arg(help="an adapter file: print what it holds")] = None,
    adapter: Annotated[AdapterConfig, tyro.conf.arg(name="")] = AdapterConfig(),  # noqa: B008 (frozen)
    json: Json = False,
) -> None:
    """Show an adapter before it is made: targets, planned contractions, parameters, file size; or an adapter file."""
    if (model is None) == (file is None):
        raise ValueError("inspect takes either --model or --file")
    if file is not None:
        from metalora.io.adapter_file import read

        description, tensors = read(file)
        description["bytes"] = file.stat().st_size
        description["tensors"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
        print_json(description)
        return
    from metalora.cost import describe
    from metalora.zoo import load_model

    found = describe(load_model(model, weights=False), adapter)
    show(found, json, f"{adapter.method} on {model}", ("target", "shape", "left", "mid", "right", "k", "parameters"),
          found["targets"])  # fmt: skip
    if not json:
        print(f"{found['parameters']:,} parameters at {len(found['targets'])} targets, about {found['bytes']:,} bytes")


def plan(
    model: Annotated[str, tyro.conf.arg(help="roberta-base, timm:NAME, hf:FOLDER or its config.json, ...")],
    adapter: Annotated[AdapterConfig, tyro.conf.arg(name="")] = AdapterConfig(),  # noqa: B008 (frozen)
    match_params: Annotated[int | None, tyro.conf.arg(help="find the rank with at most so many parameters")] = None,
    match_rank: Annotated[
        int | None, tyro.conf.arg(help="this rank for every bond, above a mode's size or not")
    ] = None,
    by_spectra: Annotated[
        bool, tyro.conf.arg(help="with --match-params: a rank for each mode, by the spectra of the model's weights")
    ] = False,
    json: Json = False,
) -> None:
    """Say what an adapter would cost, with no weights: parameters, file size, multiply-adds, memory in training.

    --match-params is TensLoRA's isoparameter protocol, --match-rank its isorank.
    """
    from metalora.cost import matched, summarise
    from metalora.ranks.allocation import ranks_by_spectra
    from metalora.zoo import load_model

    if match_params is not None and match_rank is not None:
        raise ValueError("plan takes either --match-params or --match-rank")
    if by_spectra and match_params is None:
        raise ValueError("plan: --by-spectra shares out the parameters of --match-params, which is not given")
    net = load_model(model, weights=by_spectra)
    if match_params is not None:
        adapter = (ranks_by_spectra if by_spectra else matched)(net, adapter, match_params)
    elif match_rank is not None:
        adapter = dataclasses.replace(adapter, rank=match_rank, clip_rank=False)
    found = summarise(net, adapter)
    if json:
        return print_json(found)
    print(f"{found['method']} on {model}: {found['formula']}")
    print("ranks " + (", ".join(f"{bond} {size}" for bond, size in found["ranks"].items()) or "none"))
    for name, shape in found["factors"].items():
        print(f"  {name:<10} {shape}")
    print(f"{found['parameters']:,} parameters at {found['targets']} targets "
          f"({found['parameters'] / found['base_parameters']:.4%} of the base)")  # fmt: skip
    print(f"file about {found['bytes']:,} bytes; {found['training_bytes']:,} bytes in training (Adam, float32)")
    print(f"{found['multiply_adds']:,} multiply-adds a token beside the targets' {found['base_multiply_adds']:,} "
          f"(+{found['overhead']:.2%}); none once merged")  # fmt: skip


def merge(
    adapter: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")],
    out: Annotated[str, tyro.conf.arg(help="safetensors file of the merged state; DIR/ for a whole hf: model")],
    model: Annotated[str, tyro.conf.arg(help="the base: timm:NAME, hf:FOLDER, run:RUN.yaml, ...")],
    condition: Annotated[Path | None, tyro.conf.arg(help="condition file, for a generated adapter")] = None,
    task: Annotated[int | None, tyro.conf.arg(help="number of the task, for an adapter with tasks")] = None,
    max_shard_size: Annotated[
        str | None, tyro.conf.arg(help="of DIR/'s files (2GB); as the base's if not given")
    ] = None,
    json: Json = False,
) -> None:
    """Write base + Delta W as a plain checkpoint, or (DIR/) as a folder that from_pretrained and lm-eval take.

    A generated adapter is merged for one condition (a snapshot), an adapter with tasks for one task.
    """
    from metalora.cli.merging import merge_file

    written = merge_file(adapter, out, model=model, condition=condition, task=task, max_shard_size=max_shard_size)
    row = {"merged": out, "bytes": written}
    show(row, json, "merged", ("merged", "bytes"), [row])


def export(
    adapter: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")],
    to: Annotated[Literal["lora"], tyro.conf.arg(help="plain LoRA in PEFT's files")],
    out: Annotated[str, tyro.conf.arg(help="folder; with --all-tasks it holds task0, task1, ...")],
    model: Annotated[str, tyro.conf.arg(help="the base: timm:NAME, hf:FOLDER, run:RUN.yaml, ...")],
    condition: Annotated[Path | None, tyro.conf.arg(help="condition file, for a generated adapter")] = None,
    task: Annotated[int | None, tyro.conf.arg(help="number of the task, for an adapter with tasks")] = None,
    all_tasks: Annotated[bool, tyro.conf.arg(help="a LoRA for each task")] = False,
    max_rank: Annotated[int | None, tyro.conf.arg(help="cut larger ranks to it, optimally; the error is told")] = None,
    runtime: Annotated[
        Literal["vllm"] | None, tyro.conf.arg(name="for", help="refuse what this runtime does not serve")
    ] = None,
    max_lora_rank: Annotated[int | None, tyro.conf.arg(help="the runtime's limit (vllm: 16 if not given)")] = None,
    json: Json = False,
) -> None:
    """Write an adapter as plain LoRA that PEFT loads: exact, without SVD, the rank being the cut's.

    A generated adapter is exported for one condition (a snapshot), an adapter with tasks for one task or for all.
    """
    if task is not None and all_tasks:
        raise ValueError("export takes either --task or --all-tasks")
    from metalora.cli.merging import export_file

    written = export_file(
        adapter, out, model=model, condition=condition, task="all" if all_tasks else task, max_rank=max_rank,
        runtime=runtime, max_lora_rank=max_lora_rank,
    )  # fmt: skip
    rows = [
        {"folder": one.folder, "targets": len(one.ranks), "rank": max(one.ranks.values()), "error": f"{one.error:.3g}",
         "worst target": f"{max(one.errors.values()):.3g}", "bytes": one.bytes}
        for one in written
    ]  # fmt: skip
    found = [dataclasses.asdict(one) for one in written]
    show(found, json, f"plain {to}", ("folder", "targets", "rank", "error", "worst target", "bytes"), rows)


def convert(
    loras: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LORA_DIR...")],
    model: Annotated[str, tyro.conf.arg(help="hf:FOLDER, timm:NAME, ...: the base of all LoRAs")],
    out: Annotated[Path, tyro.conf.arg(help="the adapter file")],
    adapter: Annotated[AdapterConfig, tyro.conf.arg(name="")] = AdapterConfig(),  # noqa: B008 (frozen)
    store: Annotated[Literal["float32", "float16"], tyro.conf.arg(help="numbers of the file")] = "float32",
    json: Json = False,
) -> None:
    """Make one adapter of a shared method from trained LoRAs (folders of PEFT), each a task if there are several.

    The method is a chain (LoTR, MetaTT), a Tucker or a CP; the targets are those of the LoRAs. A warm start, or a
    library of adapters in one file.
    """
    from metalora.cli.conversion import convert_files
    from metalora.zoo import load_model

    with status("reading the LoRAs and fitting", quiet=json):
        found = convert_files(loras, load_model(model), adapter, out, store)
    show(found, json, f"{adapter.method}, {out}", ("target", "error"),
          [{"target": path, "error": error} for path, error in found["targets"].items()])  # fmt: skip
    if not json:
        print(f"relative error {found['error']:.4f}; {found['bytes_before']:,} bytes of {len(loras)} LoRAs, "
              f"{found['bytes']:,} now")  # fmt: skip


def import_lora(
    lora: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LORA")],
    model: Annotated[str, tyro.conf.arg(help="hf:FOLDER, timm:NAME, ...: the base of the LoRA")],
    out: Annotated[Path, tyro.conf.arg(help="the adapter file")],
    json: Json = False,
) -> None:
    """Make an adapter file of a trained LoRA, exactly: a folder of PEFT, or a LoCon file of kohya or LyCORIS."""
    from metalora.cli.conversion import import_file
    from metalora.zoo import load_model

    found = import_file(lora, load_model(model), out)
    show(found, json, f"lora, {out}", ("target", "rank"),
          [{"target": path, "rank": rank} for path, rank in found["targets"].items()])  # fmt: skip
    if not json:
        print(f"{found['parameters']:,} parameters at {len(found['targets'])} targets, {found['bytes']:,} bytes")


def bench(
    config: Annotated[BenchConfig, tyro.conf.arg(name="")] = BenchConfig(),  # noqa: B008 (frozen)
    what: Annotated[
        Literal["steps", "tasks", "attach", "scaling"],
        tyro.conf.arg(
            help="adapters; many tasks in a batch; attaching; cost over rank, layers, targets, tokens, tasks"
        ),
    ] = "steps",
    out: Annotated[Path | None, tyro.conf.arg(help="file that gets the result as one more row")] = None,
    plot: Annotated[Path | None, tyro.conf.arg(help="PNG file of the result")] = None,
    json: Json = False,
) -> None:
    """Time a training step, a forward and memory as ratios to the frozen model and beside PEFT, all in one run."""
    from metalora.bench import report

    with status("timing; leave the machine alone", quiet=json):
        row = report.run(config, what, out)
    if plot is not None:
        report.plot(row, plot)
    shown = row["results"]["cases"]
    columns = tuple(name for name in shown[0] if not name.endswith(("_low", "_high", "_seconds")))
    cells = [{name: "" if one[name] is None else _ratio(one, name) for name in columns} for one in shown]
    show(row, json, f"{what}: cost as a ratio, half the distance of its quartiles", columns, cells)
    if not json and "exponents" in row["results"]:
        found = row["results"]["exponents"]
        show(found, json, "added seconds ~ value ** exponent", ("axis", "case", "exponent"), found)


def _ratio(row: dict[str, Any], name: str) -> str:
    """A number, and half the distance of its quartiles where the row has them."""
    value = f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name])
    return f"{value} ±{(row[name + '_high'] - row[name + '_low']) / 2:.3f}" if name + "_low" in row else value
