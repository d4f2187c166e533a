"""What makes the core of a task from its support set: a mapping net, one gradient step, or a rule per component."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.suggest import check_choice
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.learner.features import StageFeatures
from metalora.learner.readouts import Readout, Targets
from metalora.learner.readouts.standardise import centre, explained_share, target_basis

FIRST_RATE = 0.1  # of the gradient step, in units of a core with root mean square one
HIDDEN = 16
DESCRIPTORS = 3


class SupportSet(NamedTuple):
    """A support set as a generator takes it.

    Attributes:
        inputs: The inputs as the network takes them, for n examples.
        frozen: Their frozen statistics, (n, d).
        labels: Their classes, (n,), consecutive from 0.
    """

    inputs: Any
    frozen: Tensor
    labels: Tensor


class Generator(nn.Module, ABC):
    """Makes the condition of a task, which holds the generated factors of the adapter.

    Attributes:
        name: Name in `LearnerConfig.generator`.
    """

    name: ClassVar[str]

    @abstractmethod
    def forward(self, features: StageFeatures, readout: Readout, support: SupportSet) -> Condition:
        """Return the condition of a support set.

        Args:
            features: Features of the network and its adapter.
            readout: The readout.
            support: The support set.
        """


class MappingNetGenerator(Generator):
    """The mapping net of MetaLoRA: features of the support set -> c = c0 + b tanh(g(z) / b).

    It has no parameters of its own: the mapping net belongs to the adapter. The statistics of the frozen network are
    reused if the condition is made from the same stages.

    Args:
        adapter: The adapter.
    """

    name: ClassVar[str] = "mapping-net"

    def __init__(self, adapter: Adapter):
        super().__init__()

    def forward(self, features: StageFeatures, readout: Readout, support: SupportSet) -> Condition:
        """Return the condition that the mapping net makes of the features of the support set."""
        adapter = features.adapter
        assert adapter is not None
        condition = adapter.config.condition
        same_stages = condition.source == "stages" and condition.stages in ((), features.stages)
        described = support.frozen
        if not (same_stages and described.shape[1] == adapter.required_conditioner().feature_size):
            described = adapter.features(support.inputs)
        return adapter.condition_from(described, support.labels)


class GradientStepGenerator(Generator):
    """One gradient step on the core c (CAVIA, Zintgraf et al. 2019, arXiv:1810.03642).

    c = c0 - rate * g / rms(g), with g the gradient at c0 of the leave-one-out cross-entropy of the support set with the
    readout, and a learned rate for each generated factor. The derivative of g is not taken (first order).

    Args:
        adapter: The adapter.
    """

    name: ClassVar[str] = "gradient-step"

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.log_rate = nn.Parameter(torch.full((len(adapter.required_conditioner().shapes),), FIRST_RATE).log())

    def forward(self, features: StageFeatures, readout: Readout, support: SupportSet) -> Condition:
        """Return c0 after one step down the gradient."""
        adapter = features.adapter
        assert adapter is not None
        neutral = adapter.neutral()
        gradients = self._gradients(features, readout, support, neutral)
        scale = torch.stack([gradient.square().mean() for gradient in gradients]).mean().sqrt().clamp_min(1e-12)
        values, steps = {}, []
        for rate, (key, value), gradient in zip(self.log_rate.exp(), neutral.values.items(), gradients, strict=True):
            step = rate * gradient / scale
            values[key] = value - step
            steps.append(step.square().mean())
        return replace(neutral, values=values, penalty=torch.stack(steps).mean())

    def _gradients(
        self, features: StageFeatures, readout: Readout, support: SupportSet, neutral: Condition
    ) -> tuple[Tensor, ...]:
        """Return the gradient of the leave-one-out loss with respect to each factor of the condition-free core."""
        was_training = readout.training
        readout.train()  # in eval mode a readout is not differentiable
        try:
            with torch.enable_grad():
                values = {key: value.detach().requires_grad_() for key, value in neutral.values.items()}
                start = replace(neutral, values=values)
                phi = torch.cat([support.frozen, features.adapted(support.inputs, start)], 1)
                targets = Targets.classes(support.labels, int(support.labels.max()) + 1)
                fitted = readout.fit(phi, targets, frozen_width=support.frozen.shape[1])
                loss = F.cross_entropy(fitted.leave_one_out, support.labels)
                return torch.autograd.grad(loss, list(values.values()))
        finally:
            readout.train(was_training)


class ComponentGenerator(Generator):
    """One small rule for all components: c_r = c0_r + f(what the task explains of the hidden activation h_r).

    f is one MLP for all components of all targets, so that it cannot memorise a task. It reads the shares of the
    variance that the classes explain of the mean and of the standard deviation of h_r = x Left_r, and the number of
    classes.

    Args:
        adapter: An adapter whose generated factor has one number for each component (CP).

    Raises:
        ValueError: A generated factor has another shape.
    """

    name: ClassVar[str] = "component"

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.paths = {}
        for key, shape in adapter.required_conditioner().shapes.items():
            path = key.rpartition(".")[0]
            layer = adapter.layers.get(path)
            form = getattr(layer, "low_rank", None)
            if form is None or len(shape) != 1 or form.left_rank != shape[0]:
                raise ValueError(
                    f"generator 'component' needs a core of one number for each component (metalora-cp); {key!r} has "
                    f"the shape {tuple(shape)}"
                )
            self.paths[key] = path
        self.rule = nn.Sequential(nn.Linear(DESCRIPTORS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        last = self.rule[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: StageFeatures, readout: Readout, support: SupportSet) -> Condition:
        """Return c0 plus what the rule says of every component."""
        adapter = features.adapter
        assert adapter is not None
        neutral = adapter.neutral()
        statistics = features.hidden_statistics(support.inputs, neutral)
        classes = int(support.labels.max()) + 1
        basis = target_basis(Targets.classes(support.labels, classes).to(support.frozen))
        values, steps = {}, []
        for key, value in neutral.values.items():
            hidden = statistics[self.paths[key]]  # (n, 2 ranks)
            share = explained_share(centre(hidden), basis)
            count = torch.full_like(share[: value.shape[1]], (classes - 4) / 2)
            described = torch.stack([*((share - 0.3) / 0.25).chunk(2), count], 1)  # (ranks, 3)
            step = self.rule(described)[:, 0]
            values[key] = value + step
            steps.append(step.square().mean())
        return replace(neutral, values=values, penalty=torch.stack(steps).mean())


GENERATORS: dict[str, Callable[[Adapter], Generator]] = {
    kind.name: kind for kind in (MappingNetGenerator, GradientStepGenerator, ComponentGenerator)
}


def make_generator(name: str, adapter: Adapter | None) -> Generator | None:
    """Return the generator of an adapter whose core is made from a support set; None for any other adapter.

    Args:
        name: "mapping-net", "gradient-step" or "component".
        adapter: The adapter.

    Raises:
        ValueError: An unknown name, with the nearest valid one.
    """
    check_choice("generator", name, tuple(GENERATORS))
    if adapter is None or not takes_support_condition(adapter):
        return None
    return GENERATORS[name](adapter)


def takes_support_condition(adapter: Adapter) -> bool:
    """Return True if a support set makes the condition; otherwise every example makes its own, or there is none."""
    return adapter.conditional and adapter.config.condition.scope == "support"
