"""The table of method cases that the laws run over: every method, frozen and generated, with unequal bonds."""

from dataclasses import dataclass, field

import torch

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.methods.registry import METHODS
from oracles.dense import BIASES, FEATURE_WISE, delta, dora_of_lora, film, film_shift, rows_of, to_base_layout
from support.adapters import randomise

FEATURES = 7


@dataclass(frozen=True)
class Case:
    """A configuration of a method; without generated factors the scope of its condition is "constant"."""

    method: str
    rank: int | dict[str, int] | tuple[int, ...]
    alpha: float | None = None
    generated: tuple[str, ...] = ()
    heads: str = "target"
    tasks: int = 1
    init: str = ""
    head_dim: int = 3
    digits: dict[str, str] = field(default_factory=dict)

    def fits(self, layer) -> bool:
        """Whether the method can adapt a kind of layer: an embedding has no bias that could be merged."""
        return self.method not in BIASES or layer.kind != "embedding"

    @property
    def has_delta(self) -> bool:
        """Whether the method is a change of the weight."""
        return METHODS[self.method].form != "bottleneck"

    @property
    def has_pair(self) -> bool:
        """Whether the change of the weight is a LoRA."""
        return METHODS[self.method].export != "none"

    @property
    def per_example(self) -> bool:
        """Whether a forward takes a condition, made from features or looked up by task."""
        return bool(self.generated) or self.tasks > 1

    def condition(self, adapter, n: int, seed: int | None = None):
        """Make a condition for n examples; the same seed gives the same features."""
        generator = torch.Generator().manual_seed(int(torch.randint(10**6, ())) if seed is None else seed)
        if self.tasks > 1:
            return adapter.task(torch.arange(n) % self.tasks if n > 2 else torch.arange(n))
        return adapter.condition(torch.randn(n, FEATURES, generator=generator))

    def config(self, **changes) -> AdapterConfig:
        condition = ConditionConfig(
            source="tensor",
            feature_size=FEATURES,
            hidden=6,
            heads=self.heads,
            scope="sample" if self.generated else "constant",
        )
        options = dict(targets=("0",), experts=2, condition=condition, generated=self.generated or None)
        options |= {"tasks": self.tasks, "head_dim": self.head_dim, "init": self.init or {}, "digits": self.digits}
        options |= changes
        return AdapterConfig(method=self.method, rank=self.rank, alpha=self.alpha, **options)


HIDDEN = {"hidden": "2 3"}
BONDS = {"r0": 2, "r1": 3, "r2": 4}
CHAIN = {"r1": 2, "r2": 4, "r3": 3}
CASES = {
    "lora": Case("lora", 3, 7.0),
    "lora-A": Case("lora", 3, 7.0, ("A",)),
    "lora-B": Case("lora", 3, 7.0, ("B",)),
    "lora-AB": Case("lora", 2, None, ("A", "B"), heads="shared"),
    "conv-lora": Case("conv-lora", 2),
    "multi-lora": Case("multi-lora", 3, 7.0),
    "multi-lora-s": Case("multi-lora", 3, 7.0, ("s",)),
    "moe-lora": Case("moe-lora", 4, 7.0),
    "moe-lora-g": Case("moe-lora", 4, 7.0, ("g",)),
    "moe-lora-Ag": Case("moe-lora", 4, 7.0, ("A", "g")),
    "metalora-cp": Case("metalora-cp", 3, 7.0),
    "metalora-cp-c": Case("metalora-cp", 3, 7.0, ("c",)),
    "metalora-tr": Case("metalora-tr", BONDS),
    "metalora-tr-C": Case("metalora-tr", BONDS, None, ("C",)),
    "metalora-tr-C-alpha": Case("metalora-tr", 2, 7.0, ("C",)),
    "metalora-tr-ABC": Case("metalora-tr", BONDS, None, ("A", "B", "C"), heads="shared"),
    "metalora-square": Case("metalora-square", {"r0": 3, "r1": 2}),
    "metalora-square-C": Case("metalora-square", {"r0": 3, "r1": 2}, None, ("C",)),
    "metatt-4d": Case("metatt-4d", CHAIN, 0.7),
    "metatt-4d-G2": Case("metatt-4d", CHAIN, 0.7, ("G2",)),
    "metatt-4d-G1G4": Case("metatt-4d", 2, None, ("G1", "G4"), heads="shared"),
    "metatt-5d": Case("metatt-5d", {**CHAIN, "r4": 2}, 0.7),
    "metatt-5d-G4": Case("metatt-5d", {**CHAIN, "r4": 2}, None, ("G4",)),
    "metatt-4+1d": Case("metatt-4+1d", {**CHAIN, "r4": 2}, 0.7),
    "metatt-4+1d-tasks": Case("metatt-4+1d", {**CHAIN, "r4": 2}, 0.7, tasks=3),
    "metatt-4+1d-G3": Case("metatt-4+1d", {**CHAIN, "r4": 2}, 0.7, ("G3",)),
    "metatt-6d": Case("metatt-6d", {**CHAIN, "r4": 2, "r5": 3}, 0.7),
    "metatt-6d-tasks": Case("metatt-6d", {**CHAIN, "r4": 2, "r5": 3}, None, tasks=3, init="no-no-no-no-no-ze"),
    "metatt-6d-G5": Case("metatt-6d", {**CHAIN, "r4": 2, "r5": 3}, None, ("G5",)),
    **{name: Case(name, 2, 0.7) for name in METHODS if name.startswith("tenslora")},
    "tenslora-att-ranks": Case("tenslora-att", (3, 4, 2), 0.7),
    "tenslora-qkv-depth-ranks": Case("tenslora-qkv-depth", (2, 5, 3, 2), 0.7),
    "tenslora-depth-cp-L": Case("tenslora-depth-cp", 3, 0.7, ("L",)),
    "lotr": Case("lotr", (2, 3), 0.7),
    "lotr-U": Case("lotr", 2, None, ("U",)),
    "fact-tt": Case("fact-tt", (2, 3), 0.7),
    "fact-tk": Case("fact-tk", (2, 3, 2), 0.7),
    "fact-tk-code": Case("fact-tk-code", 2, 0.7),
    "fact-tk-code-P": Case("fact-tk-code", 2, 0.7, ("P",)),
    "lorta": Case("lorta", 3, 0.7),
    "lorta-auto": Case("lorta-auto", 3, 0.7),
    "lorta-in": Case("lorta-in", 3, 0.7, head_dim=1),
    "cara": Case("cara", 3, 0.7),
    "cara-P3b": Case("cara", 3, None, ("P3", "b")),
    "cara-attention": Case("cara-attention", 3, 0.7),
    "vera": Case("vera", 7, 0.7),
    "vera-d": Case("vera", 4, None, ("d",)),
    "tensorpeft": Case("tensorpeft", 3, 0.7),
    "rslora": Case("rslora", 3, 7.0),
    "pissa": Case("pissa", 3, 7.0),
    "pissa-A": Case("pissa", 3, 7.0, ("A",)),
    "pissa-B": Case("pissa", 2, None, ("B",)),
    "olora": Case("olora", 3, 7.0),
    "dora": Case("dora", 3, 7.0),
    "dora-B": Case("dora", 2, None, ("B",)),
    "dora-d": Case("dora", 3, 7.0, ("d",)),
    "adalora": Case("adalora", 3, 7.0),
    "loha": Case("loha", (2, 3), 7.0),
    "loha-A2": Case("loha", 2, 7.0, ("A2",)),
    "lokr": Case("lokr", 2, 7.0),
    "lokr-full": Case("lokr-full", 8, 7.0),
    "lokr-full-D": Case("lokr-full", 8, None, ("D",)),
    "miss": Case("miss", 2, 0.7),
    "miss-D": Case("miss", 4, None, ("D",)),
    "lokr-C": Case("lokr", 2, None, ("C",)),
    "locon-tucker": Case("locon-tucker", (2, 3), 7.0),
    "loha-tucker": Case("loha-tucker", 2, 7.0),
    "lokr-tucker": Case("lokr-tucker", 2, 7.0),
    "tt-lora": Case("tt-lora", (2, 3, 2, 3, 2), 7.0),
    "loretta-rep": Case("loretta-rep", (2, 3, 2, 3, 2, 3, 2), 7.0),
    "quanta": Case("quanta", 8, 0.7),
    "quanta-T13": Case("quanta", 8, None, ("T13",)),
    "loretta-adp": Case("loretta-adp", 2, 0.7, digits=HIDDEN),
    "loretta-adp-ranks": Case("loretta-adp", (2, 3, 2, 4, 3, 2, 2, 3), None, digits=HIDDEN),
    "loretta-adp-U2": Case("loretta-adp", 2, 0.7, ("U2",), digits=HIDDEN),
    "mtl-lora": Case("mtl-lora", 2, 7.0),
    "mtl-lora-tasks": Case("mtl-lora", (2, 3), 7.0, tasks=3),
    "mtlora": Case("mtlora", (2, 3), 0.7),
    "mtlora-1": Case("mtlora", 2, 0.7),
    "mtlora-tasks": Case("mtlora", (2, 3), 0.7, tasks=3),
    "mtlora-A": Case("mtlora", (2, 3), 0.7, ("A",)),
    "task-lora": Case("task-lora", 2, 7.0),
    "task-lora-tasks": Case("task-lora", 2, 7.0, tasks=3),
    "moe-lora-shared": Case("moe-lora-shared", 4, 7.0),
    "moe-lora-shared-tasks": Case("moe-lora-shared", 4, 7.0, tasks=3),
    "moe-lora-task": Case("moe-lora-task", 4, 7.0),
    "moe-lora-task-tasks": Case("moe-lora-task", 4, 7.0, tasks=3),
    "moe-lora-task-G": Case("moe-lora-task", 4, None, ("G",)),
    "moe-lora-shared-g": Case("moe-lora-shared", 4, 7.0, ("g",)),
    "film": Case("film", 1),
    "film-gamma-beta": Case("film", 1, 0.7, ("gamma", "beta"), heads="shared"),
    "film-gamma": Case("film", 1, None, ("gamma",)),
    "film-tasks": Case("film", 1, 0.7, tasks=3),
    "ia3": Case("ia3", 1, 0.7),
    "ia3-gamma": Case("ia3", 1, None, ("gamma",)),
    "tenslora-att-qkv-core": Case("tenslora-att-qkv", (3, 2, 2, 2), None, ("core",)),
}


def features(n: int) -> torch.Tensor:
    """Random features `(n, FEATURES)`."""
    return torch.randn(n, FEATURES)


SIZES = ("few", "many", "many, cut")


def inputs_of_size(adapter, layer, size: str) -> torch.Tensor:
    """An input with few or many positions for each example; with "many, cut" the layer never forms W + Delta W."""
    adapter.weight_first = not size.endswith("cut")
    return layer.inputs(size.removesuffix(", cut"))


def attach_case(case: Case, layer, size: str = "few", random: bool = True, **changes):
    """Attach the adapter of a case to a base of one layer.

    Args:
        case: The method and its configuration.
        layer: The kind of the base layer.
        size: One of SIZES: what `inputs_of_size` makes.
        random: Whether the learned numbers are random, instead of those that the method starts with.
        changes: Fields of the configuration that differ from the case.

    Returns:
        The model, the adapter, an input of a mixed batch, and the keywords of a forward.
    """
    model = layer.base()
    adapter = attach(model, case.config(**changes))
    if random:
        randomise(adapter)
    x = inputs_of_size(adapter, layer, size)
    options = {"condition": case.condition(adapter, len(x))} if case.per_example else {}
    return model, adapter, x, options


def factors_of(adapter, target: str, condition=None, example: int = 0) -> dict[str, torch.Tensor]:
    """The factors of one example by name, detached, in the shapes of the oracle."""
    keys = {f: view.key for f, view in adapter.layout.targets[target].views.items()}
    found = {f: adapter.factors[key] for f, key in keys.items()}
    if condition is not None:
        found |= {f: condition.values[keys[f]][example] for f in adapter.per_example}
    return {name: value.detach() for name, value in found.items()}


def oracle_bias(case: Case, layer, adapter, condition=None, example: int = 0) -> torch.Tensor:
    """What the adapter adds to the output of target "0" in addition to x Delta W: `(out, 1, ...)`."""
    factors = factors_of(adapter, "0", condition, example)
    if case.method in FEATURE_WISE:
        total = film_shift(getattr(adapter.layers["0"].base, "bias", None), **factors)
    else:
        total = sum((factors[name] for name in BIASES.get(case.method, ())), torch.zeros(()))
    return (case.alpha or 1.0) * total.reshape(-1, *[1] * layer.positions)


def oracle_delta(case: Case, layer, adapter, condition=None, example: int = 0) -> torch.Tensor:
    """Delta W of target "0" for one example, in the base weight's layout."""
    factors = factors_of(adapter, "0", condition, example)
    weight = adapter.layers["0"].base.weight.detach()
    rows = rows_of(layer.kind, weight, layer.groups)  # out x in x [kernel]
    if case.method in FEATURE_WISE:
        change = (case.alpha or 1.0) * film(rows, **factors)
    else:
        dense = stored(layer, delta(case.method, factors, case.alpha, case.rank), weight)
        change = rows_of(layer.kind, dense, layer.groups)
        if case.method == "dora":
            change = dora_of_lora(rows, change, factors["d"])
    return stored(layer, change.movedim(1, -1).movedim(0, -1), weight)


def stored(layer, dense: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Delta W, [kernel] x in x out, in the layout of the weight of a layer."""
    return to_base_layout(layer.kind, dense, weight.shape, layer.groups)
