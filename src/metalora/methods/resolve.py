"""A method as a configuration asks for it: everything that follows from the two, computed once; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from metalora._util.suggest import nearest
from metalora.config import AdapterConfig
from metalora.methods.method import INITS, Method
from metalora.methods.registry import get_method
from metalora.methods.starts import STARTS, with_start

INIT_CODES = {kind[:2]: kind for kind in INITS}  # "ze", "id", ... as in the paper of MetaTT; all distinct


@dataclass(frozen=True)
class ResolvedMethod:
    """A method together with the configuration that it is used with; made by `resolve`.

    Attributes:
        config: The configuration.
        method: The method with the digits, the order of modes and the order of heads that the configuration asks for.
        generated: The factors that a mapping net makes; empty if the scope of the condition is "constant".
        frozen: The factors that are never learned, by the method or by the configuration.
        inits: Factor of the network -> its initialisation, such as "kaiming" or "normal:0.02".

    Example:
        >>> resolved = resolve(AdapterConfig("metatt-4d", rank=4, alpha=2.0))
        >>> resolved.rank, resolved.inits["G1"], resolved.scale_for(4)
        (4, 'zeros', 2.0)
    """

    config: AdapterConfig
    method: Method
    generated: tuple[str, ...]
    frozen: frozenset[str]
    inits: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the method."""
        return self.method.name

    @property
    def tasks(self) -> int:
        """Size of the task mode."""
        return self.config.tasks

    @property
    def experts(self) -> int:
        """Size of the expert mode."""
        return self.config.experts

    @property
    def rank(self) -> int:
        """The configured rank; the largest if the bonds have a rank each."""
        rank = self.config.rank
        if isinstance(rank, int):
            return rank
        return max(rank.values() if isinstance(rank, Mapping) else rank)

    def scale_for(self, rank: int, alpha: float | None = None) -> float:
        """The factor that multiplies ΔW at a target of that rank: alpha / r, alpha / sqrt(r) or alpha.

        It is 1 if `config.alpha` is None.

        Args:
            rank: The rank.
            alpha: The target's own alpha; None: that of the configuration.

        Example:
            >>> from metalora import AdapterConfig
            >>> resolve(AdapterConfig("lora", rank=4, alpha=8.0)).scale_for(4)
            2.0
        """
        alpha = self.config.alpha if alpha is None else alpha
        if alpha is None:
            return 1.0
        rule = self.config.scale or self.method.scale
        if rule == "alpha/r":
            return alpha / rank
        if rule == "alpha/sqrt(r)":
            return alpha / sqrt(rank)
        return alpha

    @property
    def per_example(self) -> tuple[str, ...]:
        """The factors of which every example has a value of its own: generated, or the slice of its task."""
        if self.tasks == 1:
            return self.generated
        by_task = [factor for factor, modes in self.method.network.factors.items() if "task" in modes]
        return tuple(dict.fromkeys((*self.generated, *by_task)))  # a factor may be both

    def hides_features(self, factor: str) -> bool:
        """Whether a generated factor must start at c0 for all features, so that the adapter starts as the base.

        A factor that starts at zero keeps ΔW at zero only while it is zero for every example; a factor whose zero is
        active (a gate) has another factor of the product at zero. If it has none, as in a mixture of trained experts,
        equal logits are the start that c0 stands for.
        """
        if self.method.frozen_initial:  # a change has to be zero for every example
            return True
        gates = {*self.method.active_at_zero} - {*self.method.separate_factors}
        others_start_at_zero = any(init == "zeros" for name, init in self.inits.items() if name not in gates)
        return self.inits[factor] == "zeros" and not (factor in gates and others_start_at_zero)


def resolve(config: AdapterConfig) -> ResolvedMethod:
    """Resolve the method of a configuration.

    Raises:
        ValueError: An unknown method, factor, order, digit, initialisation or number of tasks; factors that are both
            frozen and generated; initial values from which nothing could be learned.

    Example:
        >>> from metalora import AdapterConfig, ConditionConfig
        >>> resolve(AdapterConfig("metalora-cp")).generated
        ('c',)
        >>> resolve(AdapterConfig("metalora-cp", condition=ConditionConfig(scope="constant"))).generated
        ()
    """
    method = _configured_method(config)
    generated = method.generated if config.generated is None else config.generated
    # Without a condition the same factors are learned: the method is the same network, static.
    if config.condition.scope == "constant":
        generated = ()
    frozen = frozenset((*method.non_trainable, *config.frozen))
    _check_names(config, method)
    for factor in sorted(frozen & {*generated}):
        raise ValueError(f"method {method.name!r}: factor {factor!r} is both frozen and generated")
    _check_tasks(config, method, generated)
    _check_alpha(config, method)
    return ResolvedMethod(config, method, tuple(generated), frozen, _resolved_inits(config, method))


def _check_alpha(config: AdapterConfig, method: Method) -> None:
    """Raise a ValueError if an alpha is zero, or if targets have an alpha and the others have none."""
    if config.alpha_pattern and config.alpha is None:
        raise ValueError(f"method {method.name!r}: alpha_pattern is set and alpha, that of all other targets, is not")
    for place, alpha in (("", config.alpha), *config.alpha_pattern.items()):
        if alpha == 0:
            of_targets = f" of targets {place!r}" if place else ""
            raise ValueError(f"method {method.name!r}: alpha{of_targets} is 0, so ΔW would always be zero")


def _configured_method(config: AdapterConfig) -> Method:
    """The method with the digits, the order of its chain or the order of its heads that the configuration asks for."""
    method = get_method(config.method).with_digits(config.digits)
    if isinstance(config.init, str) and config.init in STARTS:
        method = with_start(method, config.init)
    order: str | tuple[str, ...] | None = config.order
    if isinstance(order, tuple) and len(order) == 1:  # a file or a flag may give a list: order: [tenslora]
        order = order[0]
    if order is None or order == "model":
        return method
    if order == "tenslora":
        return method.interleaved()
    if isinstance(order, str):
        raise ValueError(f"order {order!r}{nearest(order, ('model', 'tenslora'))}")
    return method.reordered(order)


def _check_names(config: AdapterConfig, method: Method) -> None:
    for setting, names in (("generated", config.generated or ()), ("frozen", config.frozen)):
        for name in names:
            if name not in method.factors:
                raise ValueError(
                    f"method {method.name!r}: {setting} names factor {name!r}{nearest(name, method.factors)}"
                )


def _check_tasks(config: AdapterConfig, method: Method, generated: tuple[str, ...]) -> None:
    tasks = config.tasks
    if tasks == 1:
        return
    with_task = [factor for factor, modes in method.network.factors.items() if "task" in modes]
    if not with_task:
        raise ValueError(f"method {method.name!r}: tasks={tasks}, expected 1; it has no task mode")
    if {*with_task} <= {*generated}:  # then no factor would read the task
        raise ValueError(
            f"method {method.name!r}: tasks={tasks}, but every factor with a task mode, {', '.join(with_task)}, is "
            "generated: the condition takes the place of the tasks"
        )


# ---- initial values -------------------------------------------------------------------------------------------------
def _resolved_inits(config: AdapterConfig, method: Method) -> dict[str, str]:
    """Factor of the network -> initialisation, from the method and the configuration."""
    # The checks are about the declared factors, so they come before starts and changes take their places.
    inits = {**method.init, **_configured_inits(config, method)}
    _check_frozen_zeros(config, method, inits)
    _check_gradient(method, inits)
    for start, change in method.frozen_initial.items():  # the start has the values, its change starts at zero
        inits[start] = inits[change]
        inits[change] = "zeros"
    return inits


def _configured_inits(config: AdapterConfig, method: Method) -> dict[str, str]:
    """The initialisations that the configuration names, by factor or by a code such as "ze-id-id-id"."""
    chosen = config.init
    if isinstance(chosen, str) and chosen in STARTS:
        return {}
    if isinstance(chosen, str):
        words = chosen.split("-")
        if len(words) != len(method.factors) or any(word not in INIT_CODES for word in words):
            known_codes = ", ".join(f"{code} {kind}" for code, kind in INIT_CODES.items())
            raise ValueError(
                f"method {method.name!r}: init {chosen!r} is not a code of one word for each of "
                f"{', '.join(method.factors)} (known: {known_codes}) or one of {', '.join(STARTS)}"
            )
        chosen = {factor: INIT_CODES[word] for factor, word in zip(method.factors, words, strict=True)}
    for factor in chosen:
        if factor not in method.factors:
            raise ValueError(f"method {method.name!r}: init names factor {factor!r}{nearest(factor, method.factors)}")
    return dict(chosen)


def _check_frozen_zeros(config: AdapterConfig, method: Method, inits: Mapping[str, str]) -> None:
    for factor in (*method.frozen, *config.frozen):
        if inits[factor] == "zeros" and factor not in method.separate_factors:
            raise ValueError(
                f"method {method.name!r}: frozen factor {factor} starts at zero, so Delta W would always be zero"
            )


def _check_gradient(method: Method, inits: Mapping[str, str]) -> None:
    """ValueError for a product of which two factors start at zero: neither would ever have a gradient."""
    # the gradient of a factor is the product of the others, and of two zeros each has the other
    for term in method.terms or (tuple(method.factors),):
        zeros = [factor for factor in term if inits[factor] == "zeros" and factor not in method.active_at_zero]
        if len(zeros) > 1:
            raise ValueError(
                f"method {method.name!r}: factors {', '.join(zeros)} all start at zero, so no gradient would ever "
                "reach any"
            )
