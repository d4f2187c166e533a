"""Small inputs that a model can take, found by trying: from its config (transformers) or from its first layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.features import Inputs, image_size_of

BATCH = 2
TOKENS = (8, 33, 128)  # lengths of sequences that are tried in turn
FIRST_TOKEN = 3  # smaller numbers are often padding or the end of a text, which models treat in a special way
IMAGE_SIZES = (64, 224)
SAMPLES = (4000, 24000)  # of sound
FRAMES = 48  # of a spectrogram

Maker = Callable[[Any, int], Tensor | None]


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """Yield inputs that a model may take, small ones and likely ones first.

    Args:
        model: Any model.

    Example:
        >>> next(candidates(nn.Sequential(nn.Linear(8, 4)))).shape
        torch.Size([2, 8])
    """
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        yield from _of_transformers(model)
    yield from _of_first_layer(model)


def described(inputs: Inputs) -> str:
    """Return inputs in words.

    Example:
        >>> described({"x": torch.zeros(2, 3)})
        'x (2, 3)'
    """
    if isinstance(inputs, Tensor):
        return f"a tensor {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping) or hasattr(inputs, "keys"):
        entries: Any = inputs
        return ", ".join(f"{name} {_shown(entries[name])}" for name in entries.keys())
    return ", ".join(_shown(value) for value in inputs)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


# ---- models of transformers -----------------------------------------------------------------------------------------
def _of_transformers(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield keyword arguments for the names in the model's forward: all that are known, or the main input."""
    names = [name for name in inspect.signature(model.forward).parameters if name in MAKERS]
    main = str(model.main_input_name)
    for attempt in range(len(TOKENS)):
        made = {name: MAKERS[name](model.config, attempt) for name in {*names, main} if name in MAKERS}
        known = {name: value for name, value in made.items() if value is not None}
        if main not in known:
            return
        decoder = {name: known[name] for name in ("decoder_input_ids",) if name in known}
        yield known
        yield {main: known[main], **decoder}
        yield {main: known[main]}
        for other in known.keys() - {main, *decoder}:
            yield {main: known[main], other: known[other], **decoder}


def _setting(config: Any, *names: str) -> Any:
    """Return the first of these settings that a config, or a config inside of it, has; None if none has."""
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    for name in names:
        for part in parts:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return None


def _number(config: Any, default: int, *names: str) -> int:
    value = _setting(config, *names)
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, int) and value > 0 else default


def _part_for_text(config: Any) -> Any:
    """Return the config of the text model in a config, or the config itself."""
    found = next((getattr(config, name) for name in ("text_config", "decoder") if hasattr(config, name)), None)
    return config if found is None or not hasattr(found, "vocab_size") else found


def _token_ids(config: Any, attempt: int) -> Tensor:
    words = _number(_part_for_text(config), 32, "vocab_size", "n_token")
    length = min(TOKENS[attempt], _number(_part_for_text(config), TOKENS[attempt], "max_position_embeddings"))
    return torch.randint(min(FIRST_TOKEN, words - 1), words, (BATCH, length))


def _decoder_ids(config: Any, attempt: int) -> Tensor | None:
    if not getattr(config, "is_encoder_decoder", False):
        return None
    words = _number(config, 32, "decoder_vocab_size", "vocab_size")
    return torch.randint(min(FIRST_TOKEN, words - 1), words, (BATCH, 5))


def _picture(config: Any, attempt: int) -> Tensor:
    size = _setting(config, "image_size", "input_size", "img_size")
    if isinstance(size, Mapping):
        size = (size.get("height", 64), size.get("width", 64))
    side = IMAGE_SIZES[min(attempt, len(IMAGE_SIZES) - 1)]
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else [size or side] * 2
    channels = _number(config, 3, "num_channels", "in_channels", "in_chans")
    frames = _setting(config, "num_frames", "frames_per_clip") or (8 if attempt == 2 else None)
    shape = (channels, int(height), int(width))
    return torch.rand(BATCH, *((int(frames),) if isinstance(frames, int) else ()), *shape)


def _sound(config: Any, attempt: int) -> Tensor:
    mels = _setting(config, "num_mel_bins")
    if mels is not None and not hasattr(config, "conv_stride"):  # a spectrogram
        return torch.randn(BATCH, _number(config, FRAMES, "max_length"), int(mels))
    channels = _setting(config, "audio_channels")
    samples = SAMPLES[min(attempt, len(SAMPLES) - 1)]
    return torch.randn(BATCH, samples) if channels is None else torch.randn(BATCH, int(channels), samples)


def _spectrogram(config: Any, attempt: int) -> Tensor:
    mels = _number(config, 80, "feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins", "input_dim")
    frames = _setting(config, "max_source_positions")
    if isinstance(frames, int) and not hasattr(config, "input_feat_per_channel"):  # Whisper and its family
        return torch.randn(BATCH, mels, 2 * frames)
    return torch.randn(BATCH, FRAMES * (attempt + 1), mels)


def _boxes(config: Any, attempt: int) -> Tensor:
    left_top = torch.randint(0, 8, (BATCH, _token_ids(config, attempt).shape[1], 2))
    return torch.cat([left_top, left_top + 4], -1)


def _past_values(config: Any, attempt: int) -> Tensor:
    length = _number(config, 32, "context_length", "horizon_length")
    return torch.randn(BATCH, length, _number(config, 1, "num_input_channels", "input_size"))


MAKERS: dict[str, Maker] = {
    "input_ids": _token_ids,
    "decoder_input_ids": _decoder_ids,
    "pixel_values": _picture,
    "pixel_values_videos": _picture,
    "input_values": _sound,
    "input_features": _spectrogram,
    "bbox": _boxes,
    "past_values": _past_values,
}


# ---- other models ---------------------------------------------------------------------------------------------------
def _of_first_layer(model: nn.Module) -> Iterator[Inputs]:
    """Yield inputs by the class of a model's first layer with a weight."""
    kinds = (nn.Embedding, nn.Conv3d, nn.Conv2d, nn.Conv1d, nn.Linear)
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if isinstance(first, nn.Embedding):
        yield torch.randint(0, first.num_embeddings, (BATCH, TOKENS[0]))
    elif isinstance(first, nn.Conv3d):
        yield torch.rand(BATCH, first.in_channels, 8, 64, 64)
        yield torch.rand(BATCH, first.in_channels, 16, 112, 112)
    elif isinstance(first, nn.Conv2d):
        yield from _pictures(model, first.in_channels)
    elif isinstance(first, nn.Conv1d):
        yield torch.rand(BATCH, first.in_channels, 64)
    elif isinstance(first, nn.Linear):
        yield torch.rand(BATCH, first.in_features)
        yield from _pictures(model, 3)


def _pictures(model: nn.Module, channels: int) -> Iterator[Inputs]:
    settings = getattr(model, "pretrained_cfg", None) or {}
    built_for = [tuple(settings["input_size"][1:])] if settings.get("fixed_input_size") else []
    own = image_size_of(model)
    sizes = dict.fromkeys([*([own] if own else built_for), *((size, size) for size in IMAGE_SIZES)])
    for size in sizes:
        yield torch.rand(BATCH, channels, *size)
    yield ([torch.rand(channels, 64, 64) for _ in range(BATCH)],)  # detectors take a list of pictures
    yield (torch.rand(BATCH, channels, 128, 128), torch.rand(BATCH, channels, 128, 128))  # optical flow takes two
