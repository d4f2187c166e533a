"""Image classification: an adapter on a pre-trained network, with a linear head that is trained too."""

from __future__ import annotations

import contextlib
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.processes import default_device
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.heads import head_path
from metalora.learner import Backbone, ImagePreprocessor, load_backbone
from metalora.learner.data import PreparedInputs, TaskPool
from metalora.learner.data.pictures import open_picture
from metalora.zoo import architectures, load_model
from metalora_papers.runs import check_full
from metalora_papers.suite import count_trained
from metalora_papers.tenslora import vit_package
from metalora_papers.tenslora.config import ImageRunConfig
from metalora_papers.tenslora.pictures import Pictures, load_pictures

DRAW_SEED, BATCH_STRIDE = 0, 10_007
EVALUATED_AT_ONCE = 100
CALIBRATION_BATCHES = 8
CROP_SCALE = (0.08, 1.0)  # of the area: the usual augmentation of ImageNet


# ---- the network ----------------------------------------------------------------------------------------------------
def load_image_backbone(name: str, size: int | None = None) -> Backbone:
    """Load a pre-trained network without its classifier, and the preparation of its pictures.

    Args:
        name: As `ImageRunConfig.model`.
        size: Height and width of the pictures; None: those that the network was trained with.

    Raises:
        ValueError: An unknown name, weights that are not there, or a network that takes no pictures.
    """
    if name == vit_package.NAME:
        name = f"hf:{vit_package.fetched_vit()}"
    elif name in architectures():
        name = f"hf:{architectures()[name]['hub']}"
    backbone = load_backbone(name, image_size=size)
    if not isinstance(backbone.preprocessor, ImagePreprocessor):
        raise ValueError(f"model {name!r} takes no pictures")
    network: Any = backbone.model
    if size is not None and hasattr(network, "set_input_size"):
        network.set_input_size(img_size=size)  # a ViT of timm: its positions are interpolated once
    backbone.model = without_classifier(network)
    return backbone


def image_model_without_weights(name: str) -> nn.Module:
    """Build a network without its classifier, for its sizes; arguments and errors as `load_image_backbone`."""
    if name == vit_package.NAME:
        return vit_package.vit_without_weights()
    return without_classifier(load_model(name.partition("@")[0], weights=False))


def without_classifier(model: Any) -> nn.Module:
    """Return the network with its classifier replaced by nothing; one of transformers (`AutoModel`) has none."""
    path = None if hasattr(model, "config") else head_path(model)
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(0)
    elif path is not None:
        model.set_submodule(path, nn.Identity())
    network: nn.Module = model
    return network


class ImageClassifier(nn.Module):
    """The features of a network, brought to mean zero and variance one, and a linear head."""

    def __init__(self, network: nn.Module, width: int, classes: int, seed: int):
        super().__init__()
        self.network = network
        self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, 0, width**-0.5, generator=generator)
        nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Return the features (n, width) of images."""
        features = pooled(self.network(images))
        return F.layer_norm(features, features.shape[-1:])


def pooled(output: Any) -> Tensor:
    """Return one vector an image of the output of a network without classifier: (n, width).

    Of a transformer the vector of its first token, which is the class token; of feature maps (n, width, h, w) the mean.

    Example:
        >>> pooled(torch.zeros(2, 3, 4, 4)).shape, pooled(torch.zeros(2, 3)).shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    states: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
    if states.ndim == 4:
        return states.mean((2, 3))
    return states[:, 0] if states.ndim == 3 else states


# ---- the pictures ---------------------------------------------------------------------------------------------------
class PictureSet:
    """The pictures of a part as batches of the network's inputs.

    Args:
        pictures: The pictures.
        preprocessor: The preparation that the network asks for.
        augment: Take a random part of each picture, at random mirrored.
    """

    def __init__(self, pictures: Pictures, preprocessor: ImagePreprocessor, *, augment: bool = False):
        self.pictures, self.preprocessor, self.labels = pictures, preprocessor, pictures.labels
        # A random part is taken of the whole picture, so nothing can be prepared once.
        self._prepared = None if augment else PreparedInputs(TaskPool(pictures.items), preprocessor)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images (n, 3, height, width) of some rows; a random part depends on torch's generator."""
        if self._prepared is not None:
            images = self._prepared.batch(rows)
            assert isinstance(images, Tensor)
            return images
        return self.preprocessor.collate([self._augmented(item) for item in self.pictures.take(rows).items])

    def _augmented(self, item: Any) -> Tensor:
        from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop
        from torchvision.transforms.functional import InterpolationMode, pil_to_tensor

        interpolation = InterpolationMode(self.preprocessor.interpolation)
        crop = RandomResizedCrop(self.preprocessor.size, CROP_SCALE, interpolation=interpolation)
        pixels: Tensor = pil_to_tensor(RandomHorizontalFlip()(crop(open_picture(item))))
        return pixels


def epoch_batch(n: int, batch: int, seed: int, step: int) -> Tensor:
    """Return the rows of batch number `step`: every row once an epoch, but for a rest, in a seeded order.

    Args:
        n: Number of rows.
        batch: Rows of a batch.
        seed: Seed of the run.
        step: Number of the batch, from 0.

    Example:
        >>> rows = [epoch_batch(6, 2, seed=0, step=step) for step in range(3)]
        >>> sorted(torch.cat(rows).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    epoch, place = divmod(step, n // batch)
    generator = torch.Generator().manual_seed(seed * BATCH_STRIDE + epoch)
    return torch.randperm(n, generator=generator)[place * batch : (place + 1) * batch]


# ---- the suite ------------------------------------------------------------------------------------------------------
class ImageSuite:
    """The classification task of one run; a `metalora_papers.suite.Suite`.

    Args:
        config: The configuration.

    Raises:
        ValueError: Settings that contradict each other, an unknown model or task, or too few training pictures.
    """

    averaged_losses = 20
    tokenizer = None

    def __init__(self, config: ImageRunConfig):
        check_full(config)
        self.config = config
        source = load_pictures(config.data, config.data_root)
        backbone = load_image_backbone(config.model, config.size)
        assert isinstance(backbone.preprocessor, ImagePreprocessor)
        chosen = _limited(source.parts["train"], config.examples)
        if len(chosen) < config.batch:
            raise ValueError(f"{config.data}: {len(chosen)} training pictures are less than a batch of {config.batch}")
        self.train_set = PictureSet(chosen, backbone.preprocessor, augment=config.augment == "crop-flip")
        self.scored_set = PictureSet(_limited(source.parts[config.split], config.test_examples), backbone.preprocessor)
        self.device = default_device()
        backbone.model.to(self.device)
        self.example = self.scored_set.batch(torch.tensor([0])).to(self.device)
        with torch.no_grad():
            width = pooled(backbone.model(self.example)).shape[-1]
        classifier = ImageClassifier(backbone.model, width, len(source.class_names), config.seed)
        self.classifier = classifier.requires_grad_(False).to(self.device)

    @property
    def model(self) -> nn.Module:
        """The network without its classifier."""
        return self.classifier.network

    @property
    def trained_model(self) -> nn.Module:
        """The network with the head."""
        return self.classifier

    def extra_modules(self) -> nn.Module | None:
        """Return the head: it is saved in the adapter's file."""
        return self.classifier.head

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Say what is trained, and calibrate the condition of a generated adapter."""
        if not training:
            return
        if adapter is None:
            self.model.requires_grad_(self.config.full)
        elif adapter.conditional:
            rows = torch.arange(len(self.train_set)).split(EVALUATED_AT_ONCE)[:CALIBRATION_BATCHES]
            adapter.calibrate(self.train_set.batch(part).to(self.device) for part in rows)
        self.classifier.head.requires_grad_(True)

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the cross-entropy of batch number `step`, and the penalty of a generated adapter."""
        rows = epoch_batch(len(self.train_set), self.config.batch, self.config.seed, step)
        logits, condition = self._logits(adapter, self.train_set.batch(rows).to(self.device))
        loss = F.cross_entropy(logits, self.train_set.labels[rows].to(self.device))
        return loss if condition is None else loss + self.config.train.penalty * condition.penalty

    def _logits(self, adapter: Adapter | None, images: Tensor) -> tuple[Tensor, Condition | None]:
        """Return the logits (n, classes) of images, and the condition that they were computed under, if any."""
        condition = _condition(adapter, images)
        conditioned: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if adapter is not None and condition is not None:
            conditioned = adapter.using(condition)
        with conditioned:
            return self.classifier.head(self.classifier.embed(images)), condition

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Nothing is watched."""

    @torch.no_grad()
    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the accuracy, and its mean over the classes that occur."""
        bf16 = self.config.train.mixed_precision == "bf16"
        predicted = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            for rows in torch.arange(len(self.scored_set)).split(EVALUATED_AT_ONCE):
                logits, _ = self._logits(adapter, self.scored_set.batch(rows).to(self.device))
                predicted.append(logits.argmax(-1).cpu())
        labels = self.scored_set.labels
        right = (torch.cat(predicted) == labels).double()
        by_class = [float(right[labels == label].mean()) for label in labels.unique()]
        return {"accuracy": float(right.mean()), "class_mean": fmean(by_class)}

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return how many numbers of the head were trained."""
        return {"head_params": count_trained(self.classifier.head)}


def _condition(adapter: Adapter | None, images: Tensor) -> Condition | None:
    """Return the condition of every image, or of the only task; None for a static adapter."""
    if adapter is None:
        return None
    if adapter.task_keys:
        return adapter.task(0)
    return adapter.condition(images) if adapter.conditional else None


def _limited(pictures: Pictures, count: int) -> Pictures:
    """Return so many pictures, drawn with a fixed seed; all of them for 0 or if there are fewer."""
    if not count or count >= len(pictures):
        return pictures
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(DRAW_SEED))
    return pictures.take(order[:count])
