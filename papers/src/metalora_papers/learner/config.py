"""Configurations of the runs and the tables of learners; imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from metalora.config import AdapterConfig, TrainConfig
from metalora_papers.config import BackboneConfig

SUITES = ("learner-attributes", "learner-emoji", "learner-texts")
LEARNER_TABLES = {
    "learner-attributes": "adapters meta-trained through a readout, on pictures with many notions",
    "learner-emoji": "adapters meta-trained through a readout, on emoji of four vendors (EfficientNet-Lite0)",
    "learner-texts": "adapters meta-trained through a readout, on sentences of BBC News (MiniLM)",
}
LEARNER_TRAINING = TrainConfig(steps=500, lr=5e-3, mapping_lr_ratio=1.0, store="float32")


@dataclass(frozen=True)
class LearnerRunConfig:
    """One run: an adapter that is meta-trained through a readout, or the frozen network with its peers."""

    suite: Literal["learner-attributes", "learner-emoji", "learner-texts"] = "learner-attributes"
    data: str = "fashion-mnist"
    """suite learner-attributes: the image set"""
    data_root: str | None = None
    method: str = "original"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the frozen network; its row holds the scores of the peers"""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """suite learner-attributes: the small backbone that is pre-trained on seen classes and cached"""
    readout: str = "kernel-ridge"
    """what a support set generates"""
    train: TrainConfig = LEARNER_TRAINING
    trained: tuple[str, ...] = ()
    """the notions that are tasks in training; empty: those of the suite"""
    held_out: tuple[str, ...] = ()
    """the notions that are only tested; empty: those of the suite"""
    left_out_vendor: str = ""
    """suite learner-emoji: this vendor's pictures are only tested on"""
    size: int = 32
    """height and width of the pictures, in pixels"""
    support: int = 60
    query: int = 48
    label_sets: int = 6
    """tasks that share the forward pass of a step"""
    generator: str = "mapping-net"
    """what makes the core of a generated adapter from a support set: mapping-net, gradient-step or component"""
    static_steps: int = 0
    """number of first steps in which a generated adapter is trained with its core c0"""
    forwards: int = 1
    """tasks of a step that a generated adapter is trained on, each with a forward pass of its own"""
    hidden_statistics: bool = True
    """also read the hidden activations x Left of the adapter: without them, an adapter of EfficientNet-Lite0 was 13
    points less accurate on the trained notions of emoji"""
    procedural: float = 0.5
    """probability that a task is a procedural notion; 1: no label is used"""
    class_episodes: float = 0.2
    """probability of an episode of a few classes"""
    test_support: int = 100
    test_query: int = 100
    test_episodes: int = 12
    peers: tuple[str, ...] = ()
    """peers that are trained on every support set and scored; empty: for the frozen network all peers that need no
    training, otherwise none"""
    peer_adapter: AdapterConfig | None = None
    """the LoRA of those peers that train one"""
    seed: int = 0
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
class LearnerTableConfig:
    """Methods under one readout, and their peers; the suite is the name of the table (learner-emoji, ...)."""

    data: str = "fashion-mnist"
    """table learner-attributes: the image set"""
    data_root: str | None = None
    """folder of the images or of the articles; None: the package or the cache that brings them"""
    backbone: Literal["resnet", "mixer"] = "resnet"
    """table learner-attributes: the small backbone"""
    pretrain_steps: int = 1500
    """table learner-attributes: number of batches of its pre-training"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all)"""
    trained: tuple[str, ...] = ()
    """the notions that are tasks in training (empty: those of the suite)"""
    held_out: tuple[str, ...] = ()
    """the notions that are only tested (empty: those of the suite)"""
    left_out_vendor: str = ""
    """table learner-emoji: a vendor whose pictures are only tested on"""
    size: int = 32
    """height and width of the pictures, in pixels"""
    targets: tuple[str, ...] = ("all",)
    """what is adapted: all, linear, conv, or patterns of module paths"""
    rank: int = 8
    """rank of LoRA, and of the tensor trains"""
    cp_rank: int = 8
    """rank of MetaLoRA-CP"""
    ring_rank: int = 3
    """rank of MetaLoRA-TR; its square is the rank of a LoRA of this size"""
    hidden: int = 16
    """width of the mapping net of the generated methods"""
    readout: str = "kernel-ridge"
    """what a support set generates"""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 500
    lr: float = 5e-3
    lr_grid: tuple[float, ...] = ()
    """rates to choose from on the validation split, per method (empty: `lr` for all)"""
    support: int = 60
    query: int = 48
    label_sets: int = 6
    """tasks that share the forward pass of a step"""
    forwards: int = 1
    """tasks of a step that a generated adapter is trained on, each with a forward pass of its own"""
    static_share: float = 0.5
    """row "metalora-cp after static steps": share of the steps in which the core is c0"""
    procedural: float = 0.5
    """probability that a task is a procedural notion"""
    class_episodes: float = 0.2
    """probability of an episode of a few classes"""
    test_episodes: int = 12
    """of each notion"""
    fitted_episodes: int = 3
    """the same for the peers that are trained on every support set, which take long"""
