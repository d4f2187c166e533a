"""The verbs of the command `metalora`; heavy imports are inside the verb, so that `--help` does not wait for torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metalora._util.number_range import SEED, Range
from metalora._util.overwriting import check_output
from metalora.bench.config import BenchConfig
from metalora.cli.render import Json, Overwrite, print_json, show, status
from metalora.config import AdapterConfig
from metalora.methods.registry import METHODS
from metalora.methods.table import methods_table

if TYPE_CHECKING:
    from metalora.adapters.skipped import SkippedWeight
    from metalora.cost import CostSummary
    from metalora.io.lora.export import Exported
    from metalora.io.lora.export_kohya import KohyaFile

Adapter = Annotated[AdapterConfig, tyro.conf.arg(name="")]
MODELS = "timm:NAME, torchvision:NAME, hf:FOLDER_OR_ID, minilm, efficientnet-lite0 or a known name such as roberta-base"
Base = Annotated[str, tyro.conf.arg(help=f"the base model: {MODELS}")]
ModelClass = Annotated[
    str | None,
    tyro.conf.arg(
        name="class",
        help="class of an hf: base, such as AutoModelForCausalLM, if the adapter does not name it by its class or task",
    ),
]
ConditionFile = Annotated[Path | None, tyro.conf.arg(help="condition file, for a generated adapter")]
Task = Annotated[int | None, tyro.conf.arg(help="number of the task, for an adapter with tasks"), Range(least=0)]
CheckBase = Annotated[
    bool, tyro.conf.arg(help="--no-check-base takes a base with other weights than the adapter and the condition name")
]
AllowDownload = Annotated[
    bool, tyro.conf.arg(help="download the extractor that the adapter file names, unless it is bundled or a file")
]
AdapterFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER", help="the adapter file")]


def methods(
    markdown: Annotated[bool, tyro.conf.arg(help="print the page docs/methods.md")] = False,
    json: Json = False,
) -> None:
    """List all methods: formula, source and parameters at one target (I in, O out, K kernel, R rank, N experts)."""
    if markdown:
        return print(methods_table(), end="")
    rows = [
        {
            "name": method.name,
            "formula": " ".join(method.formula.split()),
            "factors": dict(method.factors),
            "count": method.count,
            "export": method.export,
            "generated": list(method.generated),
            "source": method.source,
        }
        for method in METHODS.values()
    ]
    show(rows, json, "methods", ("name", "formula", "count", "export", "generated", "source"), rows)


def inspect(
    path: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH", help="any file or folder of this library, or data: say in words what it is"),
    ] = None,
    model: Annotated[str | None, tyro.conf.arg(help=MODELS)] = None,
    file: Annotated[Path | None, tyro.conf.arg(help="an adapter file: print its contents as JSON")] = None,
    images: Annotated[Path | None, tyro.conf.arg(help="for a table: folder that image paths are relative to")] = None,
    image_column: Annotated[str | None, tyro.conf.arg(help="for a table: column of image paths")] = None,
    text_column: Annotated[str | None, tyro.conf.arg(help="for a table: column of texts")] = None,
    draw: Annotated[
        Path | None, tyro.conf.arg(help="SVG file: draw --method as a tensor diagram; works without --model")
    ] = None,
    sizes: Annotated[
        dict[str, int] | None,
        tyro.conf.arg(help="for --draw without --model: modes and sizes, such as in 768 out 768"),
        Range(least=1),
    ] = None,
    adapter: Adapter = AdapterConfig(),  # noqa: B008 (frozen)
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Say what a file or a folder is, show an adapter before it is attached to --model, or draw a method (--draw).

    PATH is an adapter file, a condition file, a folder of a learner, a task, a fine-tuned model or a LoRA, a file of
    results, a table or a folder of pictures.
    """
    if draw is not None:
        if path is not None or file is not None:
            raise ValueError("inspect: --draw takes a method or --model, not a file")
        check_output(draw, overwrite, [] if model is None else [model])
        return _draw(draw, model, adapter, sizes, json)
    if sizes is not None:
        raise ValueError("inspect: --sizes are for --draw, which is not given")
    if sum(given is not None for given in (path, model, file)) != 1:
        raise ValueError("inspect takes either --model or --file, or else a file or folder")
    if model is not None:
        return _inspect_model(model, adapter, json)
    if file is not None:
        return _inspect_file(file)
    assert path is not None
    from metalora.cli.inspection import inspect_path

    finding = inspect_path(path, images=images, image_column=image_column, text_column=text_column)
    if json:
        return print_json(finding.to_dict())
    print("\n".join(finding.sentences))


def _inspect_file(file: Path) -> None:
    from metalora.io.adapter_file import read

    description, tensors = read(file)
    description["bytes"] = file.stat().st_size
    description["tensors"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    print_json(description)


def _draw(out: Path, model: str | None, config: AdapterConfig, sizes: dict[str, int] | None, json: bool) -> None:
    from metalora._util.files import write_atomically
    from metalora.diagram.draw import draw, draw_on_model
    from metalora.zoo import load_model

    if model is None:
        picture = draw(config, sizes)
    elif sizes is not None:
        raise ValueError("inspect: --sizes are for a method without --model, which has sizes of its own")
    else:
        picture = draw_on_model(load_model(model, weights=False), config)
    write_atomically(out, picture.encode())
    if json:
        return print_json({"drawing": str(out), "method": config.method})
    print(f"{out}: the network of {config.method}")


def _inspect_model(model: str, config: AdapterConfig, json: bool) -> None:
    from metalora.cost import describe
    from metalora.zoo import load_model

    described = describe(load_model(model, weights=False), config)
    description = dataclasses.asdict(described)
    columns = ("target", "shape", "left", "mid", "right", "k", "parameters")
    rows = description["targets"]
    show(description, json, f"{config.method} on {model}", columns, rows)
    if not json:
        print(f"{description['parameters']:,} parameters at {len(rows)} targets, about {description['bytes']:,} bytes")
        _print_skipped(described.skipped)


def plan(
    model: Annotated[str, tyro.conf.arg(help=f"{MODELS}; no weights are downloaded")],
    adapter: Adapter = AdapterConfig(),  # noqa: B008 (frozen)
    match_params: Annotated[
        int | None,
        tyro.conf.arg(help="choose the largest rank with at most this number of parameters"),
        Range(least=1),
    ] = None,
    match_rank: Annotated[
        int | None, tyro.conf.arg(help="give each bond this rank, even if it is larger than a mode"), Range(least=1)
    ] = None,
    by_spectra: Annotated[
        bool, tyro.conf.arg(help="with --match-params: a rank for each mode, chosen by the spectra of the weights")
    ] = False,
    json: Json = False,
) -> None:
    """Print the cost of an adapter, without weights: parameters, file size, multiply-adds, memory in training.

    --match-params is TensLoRA's isoparameter protocol, --match-rank its isorank protocol.
    """
    if match_params is not None and match_rank is not None:
        raise ValueError("plan takes either --match-params or --match-rank")
    if by_spectra and match_params is None:
        raise ValueError("plan: --by-spectra shares out the parameters of --match-params, which is not given")
    # Here and not at the top, so that `metalora --help` need not wait for torch.
    from metalora.cost import match_parameters, summarise
    from metalora.ranks.allocation import ranks_by_spectra
    from metalora.zoo import load_model

    net = load_model(model, weights=by_spectra)  # sizes are enough for everything except spectra
    if match_params is not None and by_spectra:
        adapter = ranks_by_spectra(net, adapter, match_params)
    elif match_params is not None:
        adapter = match_parameters(net, adapter, match_params)
    elif match_rank is not None:
        adapter = dataclasses.replace(adapter, rank=match_rank, clip_rank=False)
    summary = summarise(net, adapter)
    if json:
        return print_json(dataclasses.asdict(summary))
    _print_summary(summary, model)


def _print_summary(summary: CostSummary, model: str) -> None:
    share = summary.parameters / summary.base_parameters
    ranks = ", ".join(f"{bond} {size}" for bond, size in summary.ranks.items())
    print(f"{summary.method} on {model}: {summary.formula}")
    print(f"ranks {ranks or 'none'}")
    for name, shape in summary.factors.items():
        print(f"  {name:<10} {shape}")
    print(f"{summary.parameters:,} parameters at {summary.targets} targets ({share:.4%} of the base)")
    _print_skipped(summary.skipped)
    print(f"file about {summary.bytes:,} bytes; {summary.training_bytes:,} bytes in training (Adam, float32)")
    print(
        f"{summary.multiply_adds:,} multiply-adds a token, in addition to the targets' "
        f"{summary.base_multiply_adds:,} (+{summary.overhead:.2%}); none after merging"
    )


def doctor(
    model: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help=f"{MODELS}; no weights are downloaded")
    ],
    adapter: Adapter = AdapterConfig(),  # noqa: B008 (frozen)
    peft: Annotated[bool, tyro.conf.arg(help="put the adapter in with PEFT, not with metalora.attach")] = False,
    json: Json = False,
) -> None:
    """Check an adapter on a model with random weights, target by target; exit code 1 if something is wrong.

    live: the output changes with the factors; trained: they get a gradient; mergeable: the merged layer gives the same;
    exportable: plain LoRA can have the target. A large model is not run.
    """
    from metalora.cli.checking import check_model

    report = check_model(model, adapter, peft)
    columns = ("path", "kind", "live", "trained", "mergeable", "exportable")
    rows = [{name: str(getattr(target, name)) for name in columns} for target in report.targets]
    show(report.to_dict(), json, f"{report.method} on {model}", columns, rows)
    if not json:
        print(f"inputs {report.inputs}; {report.precision}")
        for name in ("forward", "gradients", "merged", "exported"):
            print(f"{name}: {getattr(report, name)}")
        for sentence in report.skipped:
            print(f"  skipped {sentence}")
    if report.faults:
        raise SystemExit(1)


def _print_skipped(skipped: Sequence[SkippedWeight]) -> None:
    from metalora.adapters.skipped import skipped_sentences

    for sentence in skipped_sentences(skipped):
        print(f"  skipped {sentence}")


def merge(
    adapter: AdapterFile,
    out: Annotated[str, tyro.conf.arg(help="safetensors file of the merged weights, or DIR/ for a whole hf: model")],
    model: Base,
    condition: ConditionFile = None,
    task: Task = None,
    max_shard_size: Annotated[
        str | None, tyro.conf.arg(help="largest file in DIR/, such as 2GB; as in the base's folder if not given")
    ] = None,
    check_base: CheckBase = True,
    allow_download: AllowDownload = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write base + Delta W as a plain checkpoint, or (DIR/) as a folder for from_pretrained and lm-eval.

    A generated adapter is merged for one condition (a snapshot), an adapter with tasks for one task.
    """
    from metalora.cli.merging import merge_file

    if not out.endswith("/"):
        check_output(out, overwrite, [adapter, model, *_given(condition)])
    written = merge_file(
        adapter,
        out,
        model=model,
        condition=condition,
        task=task,
        max_shard_size=max_shard_size,
        check_base=check_base,
        allow_download=allow_download,
    )
    row = {"merged": out, "bytes": written}
    show(row, json, "merged", ("merged", "bytes"), [row])


def export(
    adapter: AdapterFile,
    to: Annotated[
        Literal["lora", "kohya"],
        tyro.conf.arg(help="plain LoRA in PEFT's format, or a file as kohya and LyCORIS have it"),
    ],
    out: Annotated[
        str,
        tyro.conf.arg(help="folder, with --all-tasks of the folders task0, task1, ...; for kohya a safetensors file"),
    ],
    model: Base,
    condition: ConditionFile = None,
    task: Task = None,
    all_tasks: Annotated[bool, tyro.conf.arg(help="write one LoRA for each task")] = False,
    max_rank: Annotated[
        int | None,
        tyro.conf.arg(help="truncate larger ranks to this one, optimally; the error is reported"),
        Range(least=1),
    ] = None,
    runtime: Annotated[
        Literal["vllm"] | None, tyro.conf.arg(name="for", help="refuse what this runtime does not serve")
    ] = None,
    max_lora_rank: Annotated[
        int | None, tyro.conf.arg(help="the runtime's limit (vllm: 16 if not given)"), Range(least=1)
    ] = None,
    prefix: Annotated[
        str | None, tyro.conf.arg(help="kohya: lora_unet (if not given), lora_te, lora_te1, lora_te2 or lycoris")
    ] = None,
    store: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        tyro.conf.arg(help="kohya: data type of the file (float32 if not given)"),
    ] = None,
    check_base: CheckBase = True,
    allow_download: AllowDownload = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write an adapter as a plain LoRA that PEFT loads, or as a file of kohya: exact and without an SVD.

    A generated adapter is exported for one condition (a snapshot), an adapter with tasks for one task or for all.
    """
    if task is not None and all_tasks:
        raise ValueError("export takes either --task or --all-tasks")
    if to == "kohya":
        if all_tasks or max_rank is not None or runtime is not None or max_lora_rank is not None:
            raise ValueError("export --to kohya takes no --all-tasks, --max-rank, --for or --max-lora-rank")
        from metalora.cli.merging import export_kohya_file

        check_output(out, overwrite, [adapter, model, *_given(condition)])
        written = export_kohya_file(
            adapter,
            out,
            model=model,
            condition=condition,
            task=task,
            prefix=prefix or "lora_unet",
            store=store or "float32",
            check_base=check_base,
            allow_download=allow_download,
        )
        return _show_kohya(written, json)
    if prefix is not None or store is not None or overwrite:
        raise ValueError("export: --prefix, --store and --overwrite are for --to kohya; a folder is never replaced")
    from metalora.cli.merging import export_file

    exports = export_file(
        adapter,
        out,
        model=model,
        condition=condition,
        task="all" if all_tasks else task,
        max_rank=max_rank,
        runtime=runtime,
        max_lora_rank=max_lora_rank,
        check_base=check_base,
        allow_download=allow_download,
    )
    _show_exports(exports, json)


def _given(path: Path | None) -> list[Path]:
    return [] if path is None else [path]


def _show_exports(exports: Sequence[Exported], json: bool) -> None:
    rows = [
        {
            "folder": exported.folder,
            "targets": len(exported.ranks),
            "rank": max(exported.ranks.values()),
            "error": f"{exported.error:.3g}",
            "worst target": f"{max(exported.errors.values()):.3g}",
            "bytes": exported.bytes,
        }
        for exported in exports
    ]
    value = [dataclasses.asdict(exported) for exported in exports]
    show(value, json, "plain lora", ("folder", "targets", "rank", "error", "worst target", "bytes"), rows)


def _show_kohya(written: KohyaFile, json: bool) -> None:
    row = {"file": written.path, "algorithm": written.algorithm, "targets": len(written.ranks), "bytes": written.bytes}
    show(dataclasses.asdict(written), json, "file of kohya", list(row), [row])


def convert(
    loras: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LORA_DIR...", help="folders in PEFT's format")
    ],
    model: Annotated[str, tyro.conf.arg(help=f"the base model of all LoRAs: {MODELS}")],
    out: Annotated[Path, tyro.conf.arg(help="the adapter file")],
    adapter: Adapter = AdapterConfig(),  # noqa: B008 (frozen)
    store: Annotated[
        Literal["float32", "float16"], tyro.conf.arg(help="data type of the numbers in the file")
    ] = "float32",
    model_class: ModelClass = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fit one adapter with shared factors to trained LoRAs; several LoRAs become its tasks.

    The method is a chain (LoTR, MetaTT), a Tucker or a CP; the targets are those of the LoRAs. Use it as a warm start,
    or to keep a library of LoRAs in one file.
    """
    from metalora.cli.conversion import convert_files

    check_output(out, overwrite, [*loras, model])
    with status("reading the LoRAs and fitting", quiet=json):
        result = convert_files(loras, adapter, out, model=model, class_name=model_class, store=store)
    rows = [{"target": path, "error": error} for path, error in result["targets"].items()]
    show(result, json, f"{adapter.method}, {out}", ("target", "error"), rows)
    if not json:
        print(
            f"relative error {result['error']:.4f}; {result['bytes_before']:,} bytes of {len(loras)} LoRAs, "
            f"{result['bytes']:,} now"
        )


def import_lora(
    lora: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="LORA", help="a folder of PEFT or diffusers, or a file of kohya, LyCORIS, ComfyUI, ..."),
    ],
    model: Annotated[str, tyro.conf.arg(help=f"the base model of the LoRA: {MODELS}")],
    out: Annotated[Path, tyro.conf.arg(help="the adapter file")],
    model_class: ModelClass = None,
    network: Annotated[
        str | None, tyro.conf.arg(help="the network of the file to take, such as unet, lora_te1 or encoder")
    ] = None,
    subfolder: Annotated[str, tyro.conf.arg(help="the folder inside of LORA that holds the LoRA")] = "",
    leave_out_modules: Annotated[
        bool, tyro.conf.arg(help="go without modules that were trained whole, such as a classifier")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a trained LoRA as an adapter file, exactly."""
    from metalora.cli.conversion import import_file

    check_output(out, overwrite, [lora, model])
    result = import_file(
        lora,
        out,
        model=model,
        class_name=model_class,
        network=network,
        subfolder=subfolder,
        leave_out_modules=leave_out_modules,
    )
    rows = [{"target": path, "rank": rank} for path, rank in result["targets"].items()]
    show(result, json, f"lora, {out}", ("target", "rank"), rows)
    if not json:
        print(f"{result['parameters']:,} parameters at {len(rows)} targets, {result['bytes']:,} bytes")


def combine(
    adapters: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="ADAPTER...", help="adapter files, folders in PEFT's format, files of kohya or LyCORIS"),
    ],
    weights: Annotated[tuple[float, ...], tyro.conf.arg(help="one for each adapter; negative ones subtract"), Range()],
    model: Annotated[str, tyro.conf.arg(help=f"the base model of all adapters: {MODELS}")],
    out: Annotated[str, tyro.conf.arg(help="the adapter file, or DIR/ for a folder in PEFT's format")],
    how: Annotated[
        Literal["sum", "ties", "dare_linear", "dare_ties", "magnitude_prune"],
        tyro.conf.arg(help="sum: the weighted sum; the others prune the numbers of each Delta W first"),
    ] = "sum",
    density: Annotated[
        float | None,
        tyro.conf.arg(help="part of the numbers that pruning keeps, such as 0.5"),
        Range(above=0, most=1),
    ] = None,
    rank: Annotated[
        int | None,
        tyro.conf.arg(help="largest rank of the result; a sum without it is exact, its ranks add"),
        Range(least=1),
    ] = None,
    sign: Annotated[
        Literal["total", "frequency"], tyro.conf.arg(help="elect a sign by the sum of the numbers or by their count")
    ] = "total",
    seed: Annotated[int, tyro.conf.arg(help="of what DARE drops"), SEED] = 0,
    tasks: Annotated[
        tuple[int | None, ...] | None,
        tyro.conf.arg(help="task of each adapter, None for one without tasks"),
        Range(least=0),
    ] = None,
    conditions: Annotated[
        tuple[Path | None, ...] | None, tyro.conf.arg(help="condition file of each adapter, None for one without")
    ] = None,
    model_class: ModelClass = None,
    check_base: CheckBase = True,
    allow_download: AllowDownload = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Combine trained adapters of any methods into one plain LoRA: their weighted sum, TIES or DARE.

    A sum is exact. A rank that is lowered, and the other rules, lose something; the relative error is printed.
    """
    from metalora.cli.conversion import combine_files

    if not out.endswith("/"):
        check_output(out, overwrite, [*adapters, model, *filter(None, conditions or ())])
    with status("reading the adapters and combining", quiet=json):
        result = combine_files(
            adapters,
            out,
            model=model,
            class_name=model_class,
            weights=weights,
            how=how,
            density=density,
            rank=rank,
            sign=sign,
            seed=seed,
            tasks=tasks,
            conditions=conditions,
            check_base=check_base,
            allow_download=allow_download,
        )
    rows = [{"target": path, **numbers} for path, numbers in result["targets"].items()]
    show(result, json, f"lora, {out}", ("target", "rank", "error"), rows)
    if not json:
        print(f"relative error {result['error']:.4g}; {result['parameters']:,} parameters, {result['bytes']:,} bytes")


def bench(
    config: Annotated[BenchConfig, tyro.conf.arg(name="")] = BenchConfig(),  # noqa: B008 (frozen)
    measurement: Annotated[
        Literal["steps", "tasks", "attach", "scaling", "serving"],
        tyro.conf.arg(
            name="what",
            help="steps: a step of each adapter; tasks: many tasks in a batch; attach: time until a model is adapted; "
            "scaling: cost over rank, layers, targets, tokens and tasks; serving: a batch of as many tenants as rows",
        ),
    ] = "steps",
    out: Annotated[Path | None, tyro.conf.arg(help="file to which the result is appended as a row")] = None,
    plot: Annotated[Path | None, tyro.conf.arg(help="PNG file of the result")] = None,
    overwrite: Annotated[bool, tyro.conf.arg(help="replace the file of --plot if it exists")] = False,
    json: Json = False,
) -> None:
    """Time a training step, its backward and a forward, and measure memory, as ratios to the frozen model."""
    from metalora._util.files import check_file
    from metalora.bench.report import run

    if out is not None:
        check_file(out, makes_folder=True)
    if plot is not None:
        check_output(plot, overwrite, [config.model], makes_folder=True)
    with status("timing; leave the machine alone", quiet=json):
        row = run(config, measurement, out)
    if plot is not None:
        from metalora.bench.plot import plot as draw

        draw(row, plot)
    cases = row["results"]["cases"]
    columns = [name for name in cases[0] if not name.endswith(("_low", "_high", "_seconds"))]
    rows = [{name: _with_spread(case, name) for name in columns} for case in cases]
    title = f"{measurement}: cost as a ratio, ± half the distance of its quartiles, and its median time"
    show(row, json, title, columns, rows)
    if not json and "exponents" in row["results"]:
        exponents = row["results"]["exponents"]
        show(exponents, json, "added seconds ~ value ** exponent", ("axis", "case", "exponent"), exponents)


def _with_spread(case: dict[str, Any], name: str) -> str:
    """A number as text; with half the distance of its quartiles and with its seconds if the case has them."""
    value = case[name]
    if value is None:
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if f"{name}_low" not in case:
        return text
    text += f" ±{(case[f'{name}_high'] - case[f'{name}_low']) / 2:.3f}"
    seconds = case.get(f"{name}_seconds")
    return text if seconds is None else f"{text}, {seconds:.4f} s"
