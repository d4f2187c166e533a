"""Multinomial logistic regression as a readout."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.calibration import best_temperature, mean_log_likelihood
from metalora.learner.readouts.discriminant import class_prior
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.rules import LinearRule
from metalora.learner.readouts.standardise import centre
from metalora.learner.readouts.targets import Targets
from metalora.learner.readouts.weights import even_scaling

NEWTON_STEPS = 8
INVERSE_L2 = (1e-3, 1e-2, 0.1, 1.0, 10.0)
LARGEST_HESSIAN = 1500  # rows
LARGEST_NUMBER_OF_STEPS = 50
CONVERGED = 1e-12  # decrease of the loss that the next step promises
SMALLEST_PENALTY = 1e-6
FOLDS = 5


class LogisticRegression(Readout):
    """Multinomial logistic regression with an L2 penalty on standardised features.

    The penalty is |W|^2 / (2 C), as in scikit-learn, with free intercepts. In training, C is learned (0.01 at the
    start) and the fit is 8 steps of Newton's method on the dual coefficients, which can be differentiated. In use, the
    fit converges, and the best leave-one-out likelihood chooses C from 0.001, 0.01, ..., 10. The leave-one-out logits
    are a Newton step from the fit to all items (Rad and Maleki 2020, arXiv:1801.10243), or those of five folds if the
    Hessian is too large for this. In training mode they are the plain logits of the support set.

    Args:
        balanced: Whether the logits leave out how often classes occur in the support set.

    Example:
        >>> fitted = LogisticRegression().fit(torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3))
        >>> fitted.logits(torch.randn(4, 5)).shape
        torch.Size([4, 3])
    """

    name: ClassVar[str] = "logistic"

    def __init__(self, *, balanced: bool = False):
        super().__init__(balanced=balanced)
        self.log_inverse_l2 = nn.Parameter(torch.tensor(0.01).log())

    def _fit_for_training(self, support: Tensor, targets: Targets) -> FittedReadout:
        centred = centre(support)
        scaling = even_scaling(centred)
        features = centred.deviations * scaling.factor
        penalty = (-self.log_inverse_l2).exp().to(features.dtype) / centred.is_used.sum().clamp_min(1)
        rule = self._rule(*newton_fit(features, targets.matrix, penalty), targets, 1.0)
        logits = rule.logits(features, features).detach()
        return self._fitted(scaling, features, rule, logits, targets)

    def _fit_for_use(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> FittedReadout:
        centred = centre(support)
        scaling = even_scaling(centred)
        features = scaling(support)
        weights = self._item_weights(targets)
        used = max(int(centred.is_used.sum()), 1)  # the scaling has divided the features by the root of this number
        best_likelihood = -float("inf")
        for inverse_l2 in INVERSE_L2:
            penalty = 1 / (inverse_l2 * used)
            slope, offset = converged_fit(features, targets.matrix, penalty)
            logits = self._unbiased(leave_one_out(features, targets.matrix, penalty, slope, offset), targets)
            temperature = float(best_temperature(logits, targets, weights))
            likelihood = float(mean_log_likelihood(logits / temperature, targets, weights))
            if likelihood > best_likelihood:
                best_likelihood, best_logits, chosen = likelihood, logits / temperature, temperature
                rule = self._rule(slope, offset, targets, temperature)
        return self._fitted(scaling, features, rule, best_logits, targets, temperature=chosen)

    def _rule(self, slope: Tensor, offset: Tensor, targets: Targets, temperature: float) -> LinearRule:
        """Return the rule with logits that are divided by a temperature."""
        return LinearRule(slope / temperature, self._unbiased(offset, targets) / temperature)

    def _unbiased(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return logits (..., classes) without the frequencies of the classes, if the readout is balanced."""
        return logits - class_prior(targets.matrix) if self.balanced else logits


def newton_fit(features: Tensor, one_hot: Tensor, penalty: Tensor, steps: int = NEWTON_STEPS) -> tuple[Tensor, Tensor]:
    """Fit by Newton's method on the dual coefficients A, with W = X^T A; it can be differentiated.

    It minimises the summed cross-entropy of X W + b plus penalty / 2 * |W|^2.

    Args:
        features: Features X, (n, d).
        one_hot: Classes, one-hot, (n, c).
        penalty: The penalty, a scalar.
        steps: Number of steps, from coefficients of zero.

    Returns:
        Slopes W (d, c) and intercepts b (c,), whose sum is zero.

    Example:
        >>> slope, offset = newton_fit(torch.randn(6, 3), torch.eye(2).repeat(3, 1), torch.tensor(1.0))
        >>> slope.shape
        torch.Size([3, 2])
    """
    items, classes = one_hot.shape
    kernel = features @ features.mT
    coefficients, offset = torch.zeros_like(one_hot), torch.zeros_like(one_hot[0])
    identity = torch.eye(items * classes, dtype=kernel.dtype, device=kernel.device)
    for _ in range(steps):
        logits = kernel @ coefficients + offset
        probabilities = softmax(logits, 1)
        curvature = _curvature(probabilities)  # (n, c, c)
        target = torch.einsum("nab,nb->na", curvature, logits) - probabilities + one_hot
        # penalty A_i + H_i (K A + b)_i = target_i for each item, and the columns of A have the sum zero
        system = torch.einsum("nab,nm->namb", curvature, kernel).reshape(items * classes, items * classes)
        system = system + penalty * identity
        sums = identity[:classes, :classes].repeat(1, items)
        upper = torch.cat([system, curvature.reshape(items * classes, classes)], 1)
        lower = torch.cat([sums, system.new_ones(classes, classes)], 1)  # it also makes the sum of b zero
        right = torch.cat([target.reshape(-1), torch.zeros_like(offset)])
        solution = torch.linalg.solve(torch.cat([upper, lower]), right)
        coefficients, offset = solution[:-classes].view(items, classes), solution[-classes:]
    return features.mT @ coefficients, offset


def _curvature(probabilities: Tensor) -> Tensor:
    """Return diag(p) - p p^T of each item, (n, c, c), for probabilities (n, c)."""
    return torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]


def converged_fit(features: Tensor, one_hot: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit until the gradient vanishes: by Newton's method with line search, by L-BFGS if the Hessian is large.

    Args:
        features: Features, (n, d), in float64.
        one_hot: Classes, one-hot, (n, c).
        penalty: The penalty; see `newton_fit`.

    Returns:
        Slopes (d, c) and intercepts (c,), whose sum is zero.

    Example:
        >>> features = torch.randn(6, 3, dtype=torch.float64)
        >>> converged_fit(features, torch.eye(2).double().repeat(3, 1), 1.0)[0].shape
        torch.Size([3, 2])
    """
    basis = _span(features)  # (d, r): slopes lie in the span of the items
    problem = _Problem(features @ basis, one_hot, penalty)
    solution = problem.by_newton() if problem.size <= LARGEST_HESSIAN else problem.by_lbfgs()
    return basis @ solution[:-1], solution[-1] - solution[-1].mean()


class _Problem:
    """The regression of classes on n points of r coordinates; a solution is (r + 1, c), with the intercepts last."""

    def __init__(self, points: Tensor, one_hot: Tensor, penalty: float):
        self.points = torch.cat([points, torch.ones_like(one_hot[:, :1])], 1)  # (n, r + 1)
        self.one_hot = one_hot
        self.penalties = torch.full_like(self.points[0], penalty)[:, None]  # (r + 1, 1)
        self.penalties[-1] = SMALLEST_PENALTY  # only the differences of the intercepts are determined
        self.size = self.points.shape[1] * one_hot.shape[1]

    def loss(self, solution: Tensor) -> Tensor:
        """Return the penalised loss of a solution, a scalar."""
        log_probabilities = log_softmax(self.points @ solution, 1)
        return (self.penalties / 2 * solution.square()).sum() - (self.one_hot * log_probabilities).sum()

    def hessian(self, probabilities: Tensor) -> Tensor:
        """Return the Hessian at some probabilities (n, c), (size, size)."""
        curvature = _curvature(probabilities)
        classes = self.one_hot.shape[1]
        weighted = torch.einsum("nr,nab->ranb", self.points, curvature).reshape(-1, len(self.points), classes)
        products = torch.einsum("xnb,ns->xsb", weighted, self.points).reshape(self.size, self.size)
        return products + torch.diag(self.penalties.expand(-1, classes).reshape(-1))

    def by_newton(self) -> Tensor:
        """Return the solution of Newton's method; each step is halved until the loss falls enough."""
        solution = self.points.new_zeros(self.points.shape[1], self.one_hot.shape[1])
        for _ in range(LARGEST_NUMBER_OF_STEPS):
            probabilities = softmax(self.points @ solution, 1)
            gradient = self.points.mT @ (probabilities - self.one_hot) + self.penalties * solution
            step = torch.linalg.solve(self.hessian(probabilities), gradient.reshape(-1)).view_as(solution)
            decrease = (step * gradient).sum()
            if decrease < CONVERGED:
                break
            size, loss = 1.0, self.loss(solution)
            while self.loss(solution - size * step) > loss - 1e-4 * size * decrease and size > 1e-6:
                size /= 2
            solution = solution - size * step
        return solution

    def by_lbfgs(self) -> Tensor:
        """Return the solution of L-BFGS."""
        with torch.enable_grad():
            solution = self.points.new_zeros(self.points.shape[1], self.one_hot.shape[1], requires_grad=True)
            optimiser = torch.optim.LBFGS(
                [solution], max_iter=300, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                optimiser.zero_grad()
                loss = self.loss(solution)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimiser.step(closure)  # type: ignore[no-untyped-call]
        return solution.detach()


def _span(features: Tensor) -> Tensor:
    """Return an orthonormal basis (d, r) of the span of features (n, d)."""
    if features.shape[1] <= features.shape[0]:
        return torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    directions: Tensor = torch.linalg.svd(features, full_matrices=False).Vh.mT
    return directions


def leave_one_out(features: Tensor, one_hot: Tensor, penalty: float, slope: Tensor, offset: Tensor) -> Tensor:
    """Return the logits of each item by a regression without this item, approximately.

    With the block Q_i = x_i H^-1 x_i^T of the Hessian H at the fit to all items, the residuals p - y and
    C_i = diag(p_i) - p_i p_i^T, the logits change by (I - Q_i C_i)^-1 Q_i (p_i - y_i).

    Args:
        features: Features, (n, d), in float64.
        one_hot: Classes, one-hot, (n, c).
        penalty: The penalty.
        slope: Slopes of the fit to all items, (d, c).
        offset: Intercepts of this fit, (c,).

    Returns:
        Logits, (n, c).

    Example:
        >>> features, one_hot = torch.randn(6, 3).double(), torch.eye(2).double().repeat(3, 1)
        >>> leave_one_out(features, one_hot, 1.0, *converged_fit(features, one_hot, 1.0)).shape
        torch.Size([6, 2])
    """
    items, classes = one_hot.shape
    if (min(features.shape) + 1) * classes > LARGEST_HESSIAN:
        return _of_folds(features, one_hot, penalty)
    problem = _Problem(features @ _span(features), one_hot, penalty)
    logits = features @ slope + offset
    probabilities = softmax(logits, 1)
    parts = (problem.points.shape[1], classes)
    inverse = torch.linalg.inv(problem.hessian(probabilities)).view(*parts, *parts)
    right = torch.einsum("rasb,ns->nrab", inverse, problem.points)
    blocks = torch.einsum("nr,nrab->nab", problem.points, right)
    moved = blocks @ (probabilities - one_hot)[:, :, None]
    identity = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    steps: Tensor = torch.linalg.solve(identity - blocks @ _curvature(probabilities), moved)
    return logits + steps[:, :, 0]


def _of_folds(features: Tensor, one_hot: Tensor, penalty: float) -> Tensor:
    """Return the logits of each item by a fit to four of five folds, (n, c); items of a class are spread evenly."""
    order = one_hot.argmax(1).argsort(stable=True)
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order), device=order.device) % FOLDS
    logits = torch.zeros_like(one_hot)
    for number in range(FOLDS):
        slope, offset = converged_fit(features[fold != number], one_hot[fold != number], penalty)
        logits[fold == number] = features[fold == number] @ slope + offset
    return logits
