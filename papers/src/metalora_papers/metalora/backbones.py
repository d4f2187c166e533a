"""Small frozen backbones of the desk-scale benchmark, pre-trained on seen classes and cached."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from metalora._util.digest import tensor_digest, typed_label
from metalora._util.files import errors_for_users, replace_file
from metalora_papers.cache import cache_folder
from metalora_papers.config import BackboneConfig

RECIPE = 1  # raise it whenever the same config would give other weights
RESNET_CHANNELS = (16, 32, 40, 56)
MIXER_WIDTH, MIXER_BLOCKS, MIXER_GRID = 64, 4, 4
VIT_WIDTH, VIT_BLOCKS, VIT_HEADS, VIT_PATCH = 64, 4, 4, 4

SampleBatch = Callable[[int], tuple[Tensor, Tensor]]


def build(architecture: str, image_size: int, num_classes: int, in_chans: int = 3) -> nn.Module:
    """A small untrained timm network on images (batch, in_chans, image_size, image_size), drawn from torch's generator.

    ValueError: an unknown architecture, or an image size that the mixer's patches do not divide.
    """
    if architecture == "resnet":
        return _resnet(num_classes, in_chans)
    if architecture == "mixer":
        return _mixer(image_size, num_classes, in_chans)
    if architecture == "vit":
        return _vit(image_size, num_classes, in_chans)
    raise ValueError(f"unknown architecture {architecture!r} (known: mixer, resnet, vit)")


def _resnet(num_classes: int, in_chans: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    width = RESNET_CHANNELS[0]
    # Only a deep stem lets timm narrow the first stage below 64 channels; a plain 3×3 convolution then replaces it.
    model = ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes, in_chans, channels=RESNET_CHANNELS, stem_type="deep",
        stem_width=width // 2,
    )  # fmt: skip
    model.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model.to(memory_format=torch.channels_last)  # a third less time a step on a CPU


def _vit(image_size: int, num_classes: int, in_chans: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    if image_size % VIT_PATCH:
        raise ValueError(f"vit: image_size={image_size} is not a multiple of the patches' {VIT_PATCH} pixels")
    return VisionTransformer(
        image_size, VIT_PATCH, in_chans, num_classes, embed_dim=VIT_WIDTH, depth=VIT_BLOCKS, num_heads=VIT_HEADS,
        mlp_ratio=2.0,
    )  # fmt: skip


def _mixer(image_size: int, num_classes: int, in_chans: int) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    if image_size % MIXER_GRID:
        raise ValueError(f"mixer: image_size={image_size} is not a multiple of {MIXER_GRID} patches a side")
    return MlpMixer(
        num_classes, image_size, in_chans, image_size // MIXER_GRID, MIXER_BLOCKS, MIXER_WIDTH, mlp_ratio=(0.5, 4.0)
    )


def pretrain(config: BackboneConfig, sample_batch: SampleBatch) -> nn.Module:
    """Train a backbone to tell the seen classes apart, on the CPU: the same config and batches give the same bits.

    `sample_batch(step)` returns images (batch, in_chans, image_size, image_size) and int64 labels (batch,) below
    num_classes. The model comes back in eval mode, frozen; torch's generator is left as it was.
    ValueError: a batch of another shape, or a label out of range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(config.architecture, config.image_size, config.num_classes, config.in_chans).train()
        optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
        for step in range(config.steps):
            images, labels = sample_batch(step)
            _check_batch(config, images, labels)
            loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.zero_grad()
    return _frozen(model)


def _check_batch(config: BackboneConfig, images: Tensor, labels: Tensor) -> None:
    expected = (config.batch, config.in_chans, config.image_size, config.image_size)
    if images.shape != expected or labels.shape != expected[:1]:
        raise ValueError(
            f"sample_batch gave images {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            f"the config asks for {expected} and {expected[:1]}"
        )
    low, high = labels.aminmax()
    if low < 0 or high >= config.num_classes:
        raise ValueError(f"sample_batch gave labels {low}..{high}; the config has num_classes={config.num_classes}")


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def pretrained(
    config: BackboneConfig, sample_batch: SampleBatch, data_key: str, cache_dir: str | Path | None = None
) -> nn.Module:
    """The pre-trained backbone of a config, trained once and then read from the cache; in eval mode, frozen.

    `data_key` names what `sample_batch` draws from: other data needs another key. The cache is `cache_dir`, else
    `$METALORA_CACHE/backbones`, else `~/.cache/metalora/backbones`. ValueError: a damaged cache file.
    """
    identity = json.dumps({"recipe": RECIPE, "data": data_key, **dataclasses.asdict(config)}, sort_keys=True)
    path = cache_folder("backbones", cache_dir) / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        return _frozen(_load(path, config))
    model = pretrain(config, sample_batch)
    _store(path, model, identity)
    return model


def _store(path: Path, model: nn.Module, identity: str) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    content = save(tensors, {"sha256": tensors_hash(tensors.items()), "config": identity, "torch": torch.__version__})
    with errors_for_users(path, "the backbone is not cached"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def _load(path: Path, config: BackboneConfig) -> nn.Module:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            expected = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if tensors_hash(tensors.items()) != expected:
        raise _damaged(path, "its tensors do not have the sha256 that it states")
    with torch.random.fork_rng(devices=[]):
        model = build(config.architecture, config.image_size, config.num_classes, config.in_chans)
    model.load_state_dict(tensors)
    return model


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"damaged backbone cache file ({reason}); remove it to train the backbone anew: rm '{path}'")


def buffers_hash(module: nn.Module) -> str:
    """The sha256 of every buffer's name, type, shape and bits: equal before and after if no BatchNorm was updated."""
    return tensors_hash(module.named_buffers())


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors in the order of their names."""
    in_order = sorted(tensors, key=lambda item: item[0])
    return tensor_digest((f"{typed_label(name, tensor)}\n", tensor) for name, tensor in in_order)
