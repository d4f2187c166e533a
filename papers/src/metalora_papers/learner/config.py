"""Configurations of the runs and the tables of learners; imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from metalora._util.number_range import PROBABILITY, SEED, Items, Range
from metalora.config import AdapterConfig, Configuration, TrainConfig
from metalora_papers.config import BackboneConfig

SUITES = ("learner-attributes", "learner-emoji", "learner-texts")
LEARNER_TABLES = {
    "learner-attributes": "adapters meta-trained through a readout, on pictures with many notions",
    "learner-emoji": "adapters meta-trained through a readout, on emoji of four vendors (EfficientNet-Lite0)",
    "learner-texts": "adapters meta-trained through a readout, on sentences of BBC News (MiniLM)",
}
LEARNER_TRAINING = TrainConfig(steps=500, lr=5e-3, mapping_lr_ratio=1.0, store="float32")


@dataclass(frozen=True)
class LearnerRunConfig(Configuration):
    """One run: an adapter that is meta-trained through a readout, or the frozen network with its peers."""

    suite: Literal["learner-attributes", "learner-emoji", "learner-texts"] = "learner-attributes"
    """the kind of experiment"""
    data: str = "fashion-mnist"
    """suite learner-attributes: the image set"""
    data_root: str | None = None
    """folder of the data; none: the package or the cache that brings them"""
    method: str = "original"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the frozen network; its row holds the scores of the peers"""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """suite learner-attributes: the small backbone that is pre-trained on seen classes and cached"""
    readout: str = "kernel-ridge"
    """what a support set generates"""
    train: TrainConfig = LEARNER_TRAINING
    """how it is trained"""
    trained: tuple[str, ...] = ()
    """the notions that are tasks in training; empty: those of the suite"""
    held_out: tuple[str, ...] = ()
    """the notions that are only tested; empty: those of the suite"""
    left_out_vendor: str = ""
    """suite learner-emoji: this vendor's pictures are only tested on"""
    size: Annotated[int, Range(least=1)] = 32
    """height and width of the pictures, in pixels"""
    support: Annotated[int, Range(least=2)] = 60
    """labelled items of a training episode"""
    query: Annotated[int, Range(least=1)] = 48
    """further items of a training episode, which are predicted from its support set"""
    label_sets: Annotated[int, Range(least=1)] = 6
    """tasks that share the forward pass of a step"""
    generator: str = "mapping-net"
    """what makes the core of a generated adapter from a support set: mapping-net, gradient-step or component"""
    static_steps: Annotated[int, Range(least=0)] = 0
    """number of first steps in which a generated adapter is trained with its core c0"""
    forwards: Annotated[int, Range(least=1)] = 1
    """tasks of a step that a generated adapter is trained on, each with a forward pass of its own"""
    hidden_statistics: bool = True
    """also read the hidden activations x Left of the adapter: without them, an adapter of EfficientNet-Lite0 was 13
    points less accurate on the trained notions of emoji"""
    procedural: Annotated[float, PROBABILITY] = 0.5
    """probability that a task is a procedural notion; 1: no label is used"""
    class_episodes: Annotated[float, PROBABILITY] = 0.2
    """probability of an episode of a few classes"""
    test_support: Annotated[int, Range(least=1)] = 100
    """labelled items of a test episode"""
    test_query: Annotated[int, Range(least=1)] = 100
    """further items of a test episode, which are predicted"""
    test_episodes: Annotated[int, Range(least=1)] = 12
    """test episodes of each notion"""
    peers: tuple[str, ...] = ()
    """peers that are trained on every support set and scored; empty: for the frozen network all peers that need no
    training, otherwise none"""
    peer_adapter: AdapterConfig | None = None
    """the LoRA of those peers that train one"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial numbers, of the training data and of their order"""
    split: Literal["val", "test"] = "test"
    """val: hyper-parameters are chosen here; test is touched once"""

    @property
    def shared_backbone(self) -> str | None:
        """A name of what several runs share and the first of them trains and caches: the small backbone."""
        return repr((self.suite, self.data, self.backbone)) if self.suite == "learner-attributes" else None

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: never, the readout is in the file."""
        return False


@dataclass(frozen=True)
class LearnerTableConfig(Configuration):
    """Methods under one readout, and their peers; the suite is the name of the table (learner-emoji, ...)."""

    data: str = "fashion-mnist"
    """table learner-attributes: the image set"""
    data_root: str | None = None
    """folder of the images or of the articles; None: the package or the cache that brings them"""
    backbone: Literal["resnet", "mixer"] = "resnet"
    """table learner-attributes: the small backbone"""
    pretrain_steps: Annotated[int, Range(least=0)] = 1500
    """table learner-attributes: number of batches of its pre-training"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all)"""
    trained: tuple[str, ...] = ()
    """the notions that are tasks in training (empty: those of the suite)"""
    held_out: tuple[str, ...] = ()
    """the notions that are only tested (empty: those of the suite)"""
    left_out_vendor: str = ""
    """table learner-emoji: a vendor whose pictures are only tested on"""
    size: Annotated[int, Range(least=1)] = 32
    """height and width of the pictures, in pixels"""
    targets: Annotated[tuple[str, ...], Items()] = ("all",)
    """what is adapted: all, linear, conv, or patterns of module paths"""
    rank: Annotated[int, Range(least=1)] = 8
    """rank of LoRA, and of the tensor trains"""
    cp_rank: Annotated[int, Range(least=1)] = 8
    """rank of MetaLoRA-CP"""
    ring_rank: Annotated[int, Range(least=1)] = 3
    """rank of MetaLoRA-TR; its square is the rank of a LoRA of this size"""
    hidden: Annotated[int, Range(least=1)] = 16
    """width of the mapping net of the generated methods"""
    readout: str = "kernel-ridge"
    """what a support set generates"""
    seeds: Annotated[tuple[int, ...], SEED, Items()] = (0, 1, 2)
    """every run is made once with each of these seeds"""
    steps: Annotated[int, Range(least=0)] = 500
    """number of training steps"""
    lr: Annotated[float, Range(above=0)] = 5e-3
    """peak learning rate"""
    lr_grid: Annotated[tuple[float, ...], Range(above=0)] = ()
    """rates to choose from on the validation split, per method (empty: `lr` for all)"""
    support: Annotated[int, Range(least=2)] = 60
    """labelled items of a training episode"""
    query: Annotated[int, Range(least=1)] = 48
    """further items of a training episode, which are predicted from its support set"""
    label_sets: Annotated[int, Range(least=1)] = 6
    """tasks that share the forward pass of a step"""
    forwards: Annotated[int, Range(least=1)] = 1
    """tasks of a step that a generated adapter is trained on, each with a forward pass of its own"""
    static_share: Annotated[float, PROBABILITY] = 0.5
    """row "metalora-cp after static steps": share of the steps in which the core is c0"""
    procedural: Annotated[float, PROBABILITY] = 0.5
    """probability that a task is a procedural notion"""
    class_episodes: Annotated[float, PROBABILITY] = 0.2
    """probability of an episode of a few classes"""
    test_episodes: Annotated[int, Range(least=1)] = 12
    """of each notion"""
    fitted_episodes: Annotated[int, Range(least=1)] = 3
    """the same for the peers that are trained on every support set, which take long"""
