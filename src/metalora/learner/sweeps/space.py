"""What a trial may be: the methods, targets, ranks and learning rates that fit the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.cost import summarise
from metalora.learner.sweeps.config import SweepConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

METHODS = ("lora", "dora", "metatt-4d")  # unless the caller names some
TARGETS = ("all", "linear", "conv", "query,value")
RATE_FACTOR = 8.0


@dataclass(frozen=True)
class Choice:
    """What a trial trains.

    Attributes:
        method: Name of the method, or "full" or "head".
        rank: Its rank; None for a method without one.
        targets: Its targets; None likewise.
        lr: The peak learning rate.
    """

    method: str
    rank: int | None
    targets: str | None
    lr: float

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as plain values."""
        return asdict(self)

    def adapter(self, base: AdapterConfig) -> AdapterConfig:
        """Return a configuration with this method, rank and targets; a rank that is too large is lowered.

        Args:
            base: The other settings of the adapter.

        Example:
            >>> Choice("lora", 16, "all", 0.01).adapter(AdapterConfig(seed=3)).rank
            16
        """
        if self.rank is None or self.targets is None:
            return replace(base, method=self.method)
        return replace(base, method=self.method, rank=self.rank, targets=self.targets, clip_rank=True)


class Space:
    """The choices of a search that fit a network.

    Args:
        model: The network.
        base: The adapter that would be trained without a search.
        usual_rate: Method -> the learning rate that it would have without a search.
        config: What the caller wants to choose from.
        plain_methods: What may be trained instead of an adapter, and has neither a rank nor targets.

    Attributes:
        first: The choice of the first trial, which is that without a search.
        targets: Method -> the targets that it is tried at.
        left_out: Methods at targets that do not fit the network, with the reason.

    Raises:
        ValueError: The adapter without a search, or a method or a set of targets that the caller names, does not fit
            the network, or the adapter has several ranks.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> space = Space(model, AdapterConfig(), lambda method: 0.002, SweepConfig(methods=("lora",)))
        >>> space.first, space.targets
        (Choice(method='lora', rank=8, targets='all', lr=0.002), {'lora': ['all']})
    """

    def __init__(
        self,
        model: nn.Module,
        base: AdapterConfig,
        usual_rate: Callable[[str], float],
        config: SweepConfig,
        plain_methods: Sequence[str] = (),
    ):
        self.config, self.usual_rate, self.plain_methods = config, usual_rate, plain_methods
        self.first = self._first_choice(base)
        if self.first.targets is not None:
            summarise(model, self.first.adapter(base))  # which says what does not fit
        named = _with_first(base.method, config.methods or METHODS)
        self.left_out: dict[str, str] = {}
        self.targets: dict[str, list[str]] = {method: [] for method in named}
        choices = self._target_choices(model, base)
        for method in named:
            if method not in self.plain_methods:
                self.targets[method] = self._fitting(model, base, method, choices)
        self._check_named(choices)
        self.methods = [method for method in named if self.targets[method] or method in self.plain_methods]
        self.ranks = sorted({*config.ranks, *([] if self.first.rank is None else [self.first.rank])})

    def _first_choice(self, base: AdapterConfig) -> Choice:
        lr = self.usual_rate(base.method)
        if base.method in self.plain_methods:
            return Choice(base.method, None, None, lr)
        if not isinstance(base.rank, int):
            raise ValueError(f"sweep: the rank is {base.rank}, expected one number, since ranks are searched")
        targets = base.targets if isinstance(base.targets, str) else ",".join(base.targets)
        return Choice(base.method, base.rank, targets, lr)

    def _target_choices(self, model: nn.Module, base: AdapterConfig) -> list[str]:
        """Return the sets of targets that the caller names; otherwise those that match different layers."""
        if self.config.targets:
            return _with_first(self.first.targets, self.config.targets)
        choices: dict[tuple[str, ...], str] = {}
        for name in _with_first(self.first.targets, TARGETS):
            try:
                paths = tuple(target.path for target in find_targets(model, name, base.exclude))
            except ValueError:  # the network has no such layers
                continue
            choices.setdefault(paths, name)
        return list(choices.values())

    def _fitting(self, model: nn.Module, base: AdapterConfig, method: str, choices: Sequence[str]) -> list[str]:
        """Return the targets at which a method can be attached; the reasons of the others are kept."""
        fitting = []
        for targets in choices:
            choice = Choice(method, min(self.config.ranks), targets, self.first.lr)
            try:
                summarise(model, choice.adapter(base))
            except ValueError as error:
                self.left_out[f"{method} at {targets}"] = str(error)
            else:
                fitting.append(targets)
        return fitting

    def _check_named(self, choices: Sequence[str]) -> None:
        """Refuse what the caller has named and fits nothing."""
        wanted = _with_first(self.first.method, self.config.methods)
        for method in wanted:
            if method not in self.plain_methods and not self.targets[method]:
                reasons = [self.left_out[f"{method} at {targets}"] for targets in choices] or ["there are no targets"]
                raise ValueError(f"sweep: method {method} fits none of the targets: {reasons[0]}")
        for targets in self.config.targets:
            if not any(targets in fitting for fitting in self.targets.values()):
                reasons = [text for name, text in self.left_out.items() if name.endswith(f" at {targets}")]
                reason = (reasons or ["full and head have no targets"])[0]
                raise ValueError(f"sweep: targets {targets} fit none of the methods: {reason}")

    def suggest(self, trial: BaseTrial) -> Choice:
        """Return the choice of a trial of Optuna.

        Args:
            trial: The trial, whose sampler chooses.
        """
        method = trial.suggest_categorical("method", self.methods)
        low, high = self.rate_range(method)
        usual = self.usual_rate(method) == self.usual_rate(self.first.method)
        lr = trial.suggest_float("lr" if usual else f"lr of {method}", low, high, log=True)
        if method in self.plain_methods:
            return Choice(method, None, None, lr)
        rank = trial.suggest_categorical("rank", self.ranks)
        return Choice(method, rank, trial.suggest_categorical(self._targets_name(method), self.targets[method]), lr)

    def first_parameters(self) -> dict[str, Any]:
        """Return the parameters of Optuna that give the first choice."""
        first = self.first
        parameters: dict[str, Any] = {"method": first.method, "lr": first.lr}
        if first.rank is not None:
            parameters |= {"rank": first.rank, self._targets_name(first.method): first.targets}
        return parameters

    def _targets_name(self, method: str) -> str:
        """Return the name of the parameter: methods that fit the same targets share what is learned of them."""
        shared = next(fitting for fitting in self.targets.values() if fitting)
        return "targets" if self.targets[method] == shared else f"targets of {method}"

    def rate_range(self, method: str) -> tuple[float, float]:
        """Return the smallest and the largest learning rate of a method.

        Args:
            method: Its name.
        """
        usual = self.usual_rate(method)
        low, high = self.config.rates or (usual / RATE_FACTOR, usual * RATE_FACTOR)
        return min(low, usual), max(high, usual)

    def to_dict(self) -> dict[str, Any]:
        """Return the choices as plain values."""
        return {
            "first": self.first.to_dict(),
            "methods": self.methods,
            "ranks": self.ranks,
            "rates": {method: list(self.rate_range(method)) for method in self.methods},
            "targets": {method: self.targets[method] for method in self.methods},
        }


def _with_first(first: str | None, names: Sequence[str]) -> list[str]:
    """Return names without repetition, the given one before the others."""
    return list(dict.fromkeys([*([] if first is None else [first]), *names]))
