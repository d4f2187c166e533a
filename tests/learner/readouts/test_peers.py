"""The readouts next to the default against scikit-learn, the library's losses and refits."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from metalora.learner.readouts import Targets
from metalora.learner.readouts.knn import SoftNeighbours
from metalora.learner.readouts.lda import LeaveOneOut, discriminant_analysis
from metalora.learner.readouts.logistic import LogisticRegression, converged_fit, leave_one_out, newton_fit
from metalora.learner.readouts.prototype import Prototype
from metalora.training.losses import matching_loss, prototypical_loss
from support.readouts import gaussian_task


def standardised(support):
    return torch.from_numpy(StandardScaler().fit_transform(support.numpy()))


def one_hot_of(codes, count=3):
    return Targets.classes(codes, count).matrix.double()


# ---- LDA ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", (5, 40))
@pytest.mark.parametrize("shrinkage", (0.1, 0.7))
def test_lda_equals_scikit_learn(width, shrinkage):
    support, codes = gaussian_task(25, width=width)
    features = standardised(support)
    slope, offset = discriminant_analysis(features, one_hot_of(codes), torch.tensor(shrinkage).double())
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=float(torch.tensor(shrinkage).double()))
    oracle.fit(features.numpy(), codes.numpy())
    # a tolerance of the millionth of the variance that ours adds
    np.testing.assert_allclose(slope.mT.numpy(), oracle.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(offset.numpy(), oracle.intercept_ - np.log(oracle.priors_), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", (5, 40))
def test_leave_one_out_of_lda_equals_refits(width):
    support, codes = gaussian_task(16, width=width)
    features, one_hot = standardised(support), one_hot_of(codes)
    found = LeaveOneOut(features, one_hot, balanced=True).logits(0.4)
    for item in range(16):
        others = torch.arange(16) != item
        slope, offset = discriminant_analysis(features[others], one_hot[others], torch.tensor(0.4).double())
        torch.testing.assert_close(found[item], features[item] @ slope + offset, rtol=1e-4, atol=1e-4)


# ---- logistic regression --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", (5, 40))
@pytest.mark.parametrize("inverse_l2", (0.1, 10.0))
def test_logistic_regression_equals_scikit_learn(width, inverse_l2):
    support, codes = gaussian_task(30, width=width, spread=2.0)
    features = standardised(support)
    slope, offset = converged_fit(features, one_hot_of(codes), 1 / inverse_l2)
    oracle = SklearnLogisticRegression(C=inverse_l2, tol=1e-10, max_iter=5000).fit(features.numpy(), codes.numpy())
    np.testing.assert_allclose(slope.mT.numpy(), oracle.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(offset.numpy(), oracle.intercept_ - oracle.intercept_.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", (5, 40))
def test_eight_newton_steps_converge(width):
    support, codes = gaussian_task(24, width=width, spread=2.0)
    features = standardised(support) / width**0.5
    for penalty in (0.1, 1.0, 10.0):
        expected = converged_fit(features, one_hot_of(codes), penalty)
        found = newton_fit(features, one_hot_of(codes), torch.tensor(penalty).double())
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_leave_one_out_of_logistic_regression_is_close_to_refits(monkeypatch):
    support, codes = gaussian_task(18, width=6, spread=2.0)
    features, one_hot, penalty = standardised(support), one_hot_of(codes), 2.0
    fit = converged_fit(features, one_hot, penalty)
    found = leave_one_out(features, one_hot, penalty, *fit)
    refits = torch.zeros_like(found)
    for item in range(18):
        others = torch.arange(18) != item
        slope, offset = converged_fit(features[others], one_hot[others], penalty)
        refits[item] = features[item] @ slope + offset
    change = (refits - features @ fit[0] - fit[1]).softmax(1)
    assert change.std() > 0.01  # a test of something
    difference = (found.softmax(1) - refits.softmax(1)).abs()
    assert difference.max() < 0.02
    monkeypatch.setattr("metalora.learner.readouts.logistic.LARGEST_HESSIAN", 1)
    of_folds = leave_one_out(features, one_hot, penalty, *fit)
    assert (of_folds.softmax(1) - refits.softmax(1)).abs().mean() < 0.08  # of four fifths of the items


def test_logistic_readout_in_use_predicts_as_scikit_learn_does():
    (support, codes), (queries, _) = gaussian_task(30, spread=2.0), gaussian_task(200, seed=1, spread=2.0)
    fitted = LogisticRegression().eval().fit(support, Targets.classes(codes, 3))
    scaler = StandardScaler().fit(support.numpy())
    agreement = []
    for inverse_l2 in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        oracle = SklearnLogisticRegression(C=inverse_l2, max_iter=5000)
        oracle.fit(scaler.transform(support.numpy()), codes.numpy())
        predicted = oracle.predict(scaler.transform(queries.numpy()))
        agreement.append((fitted.logits(queries).argmax(1).numpy() == predicted).mean())
    assert max(agreement) == 1.0


# ---- prototypes and neighbours --------------------------------------------------------------------------------------
def test_prototypes_equal_the_loss_of_prototypical_networks():
    (support, codes), (queries, truth) = gaussian_task(), gaussian_task(10, seed=1)
    fitted = Prototype(balanced=True).fit(support, Targets.classes(codes, 3))
    weighted, weighted_queries = fitted.support, fitted.scaling(queries)
    expected = prototypical_loss(weighted, codes, weighted_queries, truth, temperature=0.1)
    torch.testing.assert_close(cross_entropy(fitted.logits(queries), truth), expected)


def test_neighbours_equal_the_loss_of_matching_networks():
    (support, codes), (queries, truth) = gaussian_task(), gaussian_task(10, seed=1)
    fitted = SoftNeighbours().fit(support, Targets.classes(codes, 3))
    expected = matching_loss(fitted.support, codes, fitted.scaling(queries), truth, temperature=0.1)
    # a tolerance of the item at the opposite side
    torch.testing.assert_close(cross_entropy(fitted.logits(queries), truth), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distance", ("cosine", "euclidean"))
def test_leave_one_out_of_prototypes_equals_prototypes_of_the_others(distance):
    support, codes = gaussian_task(14)
    fitted = Prototype(distance=distance).fit(support, Targets.classes(codes, 3))
    weighted = fitted.support
    points = torch.nn.functional.normalize(weighted, dim=1) if distance == "cosine" else weighted
    for item in range(14):
        others = torch.arange(14) != item
        for number in range(3):
            members = others & (codes == number)
            prototype = points[members].mean(0)
            prior = float(members.sum() / 13)
            if distance == "cosine":
                logit = 10 * torch.cosine_similarity(weighted[item], prototype, dim=0)
            else:
                logit = -10 * (weighted[item] - prototype).square().sum()
            torch.testing.assert_close(fitted.leave_one_out[item, number], logit + np.log(prior))


def test_leave_one_out_of_neighbours_equals_votes_of_the_others():
    support, codes = gaussian_task(14)
    fitted = SoftNeighbours().fit(support, Targets.classes(codes, 3))
    for item in range(14):
        others = torch.arange(14) != item
        similarity = torch.cosine_similarity(fitted.support[item][None], fitted.support[others])
        votes = [float(torch.exp(10 * similarity[codes[others] == number]).sum()) for number in range(3)]
        np.testing.assert_allclose(fitted.leave_one_out[item].detach().numpy(), np.log(np.array(votes) + np.exp(-10)))


def test_peers_give_no_warning():
    support, codes = gaussian_task(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for readout in (Prototype(), SoftNeighbours(), LogisticRegression()):
            readout.eval().fit(support, Targets.classes(codes, 3))


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Prototype(distance="cosinus")
