"""Truncation of trees, rings and shared bonds against the dense tensor."""

from itertools import combinations
from math import prod, sqrt

import numpy as np
import pytest
import torch

from metalora.tensornet.topology import classify_topology, feasible_ranks
from metalora.tensornet.truncation.als import fit_to_reference
from metalora.tensornet.truncation.moments import transport_moments
from metalora.tensornet.truncation.rounding import round_train
from metalora.tensornet.truncation.target import TruncationTarget
from metalora.tensornet.truncation.tree import hooi, truncate_tree
from metalora.tensornet.truncation.truncate import truncate

# name -> (bonds of every factor, their own axes, ranks, smaller ranks)
NETWORKS = {
    "tucker": ("a | b | c | a b c", (9, 8, 7, 1), dict(a=4, b=5, c=3), dict(a=2, b=3, c=2)),
    "tucker, core in front, own axis": ("a b c | a | b | c", (3, 9, 8, 7), dict(a=4, b=5, c=3), dict(a=2, b=2, c=2)),
    "tucker without a matrix on a mode": ("a | a b c | b | c", (9, 6, 8, 7), dict(a=4, b=5, c=3), dict(a=2, b=3, c=2)),
    "tree": (
        "a | a b c | b | c d e | d | e", (6, 2, 5, 1, 7, 6),
        dict(a=4, b=3, c=4, d=3, e=3), dict(a=2, b=2, c=2, d=2, e=2),
    ),
    "chain": ("a | b a | b", (9, 3, 7), dict(a=4, b=3), dict(a=2, b=2)),
    "chain, middle declared last": ("a | b | a b", (9, 7, 3), dict(a=4, b=3), dict(a=2, b=2)),
    "ring": ("p q | q r | r p", (9, 8, 7), dict(p=3, q=4, r=4), dict(p=2, q=2, r=2)),
    "ring of four": ("p q | q r | s r | s p", (9, 3, 8, 7), dict(p=3, q=4, r=4, s=3), dict(p=2, q=3, r=2, s=2)),
    "ring of two": ("p q | q p", (9, 8), dict(p=2, q=3), dict(p=1, q=2)),
    "ring with a matrix": ("p q | q r | r p", (12, 10, 1), dict(p=3, q=4, r=3), dict(p=2, q=2, r=2)),
    "cp": ("r | r | r", (9, 8, 7), dict(r=6), dict(r=3)),
    "cp of four": ("r | r | r | r", (9, 8, 1, 3), dict(r=7), dict(r=3)),
}  # fmt: skip
TREES = [name for name in NETWORKS if "ring" not in name and "cp" not in name]
LOOSE = [name for name in NETWORKS if name not in TREES]
each = pytest.mark.parametrize("name", NETWORKS)


def network(name, seed=0, decay=0.6, ranks=None):
    """(terms, factors with unequal singular values in no particular gauge, ranks, smaller ranks)."""
    spec, sizes, whole, small = NETWORKS[name]
    terms = tuple(tuple(term.split()) for term in spec.split("|"))
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for term, n in zip(terms, sizes, strict=True):
        tensor = torch.randn(n, *[(ranks or whole)[b] for b in term], generator=generator).double()
        for axis, bond in enumerate(term, start=1):
            scale = decay ** torch.arange((ranks or whole)[bond]).double()
            tensor = tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1 - axis))
        tensors.append(tensor)
    return terms, tensors, whole, small


def dense(terms, tensors):
    return torch.tensor(np.einsum(equation(terms), *[tensor.double().numpy() for tensor in tensors]))


def equation(terms):
    bonds = sorted({bond for term in terms for bond in term})
    own = [chr(ord("A") + k) for k in range(len(terms))]
    inputs = [o + "".join(chr(ord("a") + bonds.index(b)) for b in term) for o, term in zip(own, terms, strict=True)]
    return ",".join(inputs) + "->" + "".join(own)


def error(terms, one, other):
    """|T - T'| / |T|, of the dense tensors."""
    return float((dense(terms, one) - dense(terms, other)).norm() / dense(terms, one).norm())


def best(terms, tensors, ranks):
    """A lower bound of the error of any tree of these ranks: the tail of the worst cut, of dense unfoldings."""
    whole, errors = dense(terms, tensors), []
    for bond, rank in ranks.items():
        side = _side(terms, bond)
        rows = whole.permute(*side, *(k for k in range(len(terms)) if k not in side))
        values = torch.linalg.svdvals(rows.reshape(prod(whole.shape[k] for k in side), -1))
        errors.append(float(values[rank:].norm() / whole.norm()))
    return max(errors)


def _side(terms, bond):
    """The factors on one side of a bond of a tree."""
    side = [next(k for k, term in enumerate(terms) if bond in term)]
    for k in side:
        side += [j for b in terms[k] if b != bond for j, term in enumerate(terms) if b in term and j not in side]
    return sorted(side)


# ---- what holds for all of them -------------------------------------------------------------------------------------
@each
@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
def test_without_truncation_nothing_changes(name, gauge):
    for seed in range(3):
        terms, tensors, ranks, _ = network(name, seed)
        found = truncate(terms, tensors, gauge=gauge)
        assert error(terms, tensors, found.tensors) < 1e-12
        assert found.ranks == ranks and found.bound == 0 and found.error < 1e-7


@each
def test_the_error_is_measured_and_within_its_bound(name):
    for seed in range(4):
        terms, tensors, _, small = network(name, seed, decay=0.6 + 0.1 * seed)
        found = truncate(terms, tensors, ranks=small)
        wrong = error(terms, tensors, found.tensors)
        assert found.ranks == small and 0 < wrong == pytest.approx(found.error, rel=1e-6)
        assert wrong <= found.bound / float(dense(terms, tensors).norm()) * (1 + 1e-9)


@each
def test_a_tensor_of_lower_rank_is_found_in_any_gauge(name):
    """Exact where the network has ranks that its tensor does not need."""
    terms, tensors, whole, small = network(name, ranks=NETWORKS[name][3], decay=0.9)
    generator = torch.Generator().manual_seed(1)
    larger = list(tensors)
    for bond in small:
        ends = [k for k, term in enumerate(terms) if bond in term]
        if len(ends) > 2:  # columns of a shared bond: each is split into parallel ones
            index = torch.arange(whole[bond]) % small[bond]
            larger = [tensor[:, index] for tensor in larger]
            larger[0] = larger[0] / index.bincount()[index]
            continue
        change = torch.randn(small[bond], whole[bond], generator=generator).double()
        for k, matrix in zip(ends, (change, torch.linalg.pinv(change).mT), strict=True):
            axis = 1 + terms[k].index(bond)
            larger[k] = torch.tensordot(larger[k], matrix, ([axis], [0])).movedim(-1, axis)
    assert error(terms, tensors, larger) < 1e-12
    assert error(terms, larger, truncate(terms, larger, ranks=small).tensors) < 1e-7
    assert truncate(terms, larger, tolerance=1e-4).ranks == small


@each
def test_a_tolerance_is_kept(name):
    terms, tensors, ranks, _ = network(name)
    sums = []
    for tolerance in (0.3, 0.1, 1e-2, 1e-6):
        found = truncate(terms, tensors, tolerance=tolerance)
        assert error(terms, tensors, found.tensors) <= tolerance
        sums.append(sum(found.ranks.values()))
    assert sums == sorted(sums) and sums[0] < sums[-1] == sum(ranks.values())


@each
def test_a_budget_is_used_and_not_exceeded(name):
    terms, tensors, ranks, _ = network(name)
    whole = sum(tensor.numel() for tensor in tensors)
    errors = []
    for budget in (whole // 3, whole // 2, whole):
        found = truncate(terms, tensors, budget=budget)
        numbers = sum(tensor.numel() for tensor in found.tensors)
        assert numbers <= budget
        errors.append(found.error)
    assert errors == sorted(errors, reverse=True) and found.ranks == ranks and errors[0] > 1e-3


@each
def test_equal_input_gives_equal_output_in_the_dtype_of_the_factors(name):
    terms, tensors, _, small = network(name)
    tensors = [tensor.bfloat16() for tensor in tensors]
    one, two = truncate(terms, tensors, ranks=small), truncate(terms, [t.clone() for t in tensors], ranks=small)
    assert all(torch.equal(a, b) and a.dtype == torch.bfloat16 for a, b in zip(one.tensors, two.tensors, strict=True))
    exact = truncate(terms, [tensor.double() for tensor in tensors], ranks=small)
    assert error(terms, exact.tensors, one.tensors) < 3e-2


@pytest.mark.parametrize("name", [name for name in NETWORKS if "ring" not in name])
def test_signs_of_factors_do_not_matter(name):
    """The largest entry of every singular vector or column is positive, so that a flipped bond changes nothing."""
    terms, tensors, ranks, _ = network(name)
    flipped = list(tensors)
    for bond in ranks:
        sign = torch.diag(torch.where(torch.arange(ranks[bond]) % 2 == 0, -1.0, 1.0).double())
        for k in [k for k, term in enumerate(terms) if bond in term][:2]:
            axis = 1 + terms[k].index(bond)
            flipped[k] = torch.tensordot(flipped[k], sign, ([axis], [0])).movedim(-1, axis)
    for one, two in zip(truncate(terms, tensors).tensors, truncate(terms, flipped).tensors, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


@each
def test_gauges_put_the_norm_where_they_say(name):
    """Elsewhere, orthonormal columns towards it: as many as a bond has; of a shared bond, columns of length one."""
    terms, tensors, _, _ = network(name)
    left, right, balanced = (truncate(terms, tensors, gauge=gauge).tensors for gauge in ("left", "right", "balanced"))
    last = 1 if name == "chain, middle declared last" else len(terms) - 1
    for found, holder in ((left, last), (right, 0)):
        for k, tensor in enumerate(found):
            square = float(tensor.square().sum())
            assert k == holder or any(square == pytest.approx(n, rel=1e-9) for n in tensor.shape[1:])
    assert max(float(tensor.norm()) for tensor in balanced) < max(float(tensor.norm()) for tensor in left)


# ---- trees ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TREES)
def test_quasi_optimal(name):
    """Between the best possible error and the root of the number of bonds times it."""
    for seed in range(5):
        terms, tensors, _, small = network(name, seed, decay=0.5 + 0.1 * seed)
        found, least = truncate(terms, tensors, ranks=small), best(terms, tensors, small)
        assert least * (1 - 1e-9) <= found.error <= sqrt(len(small)) * least * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in TREES if "chain" not in name])
def test_hooi_is_never_worse_than_hosvd(name, monkeypatch):
    better = 0
    for seed in range(10):
        terms, tensors, ranks, small = network(name, seed, decay=0.9)
        goal = TruncationTarget(terms, tuple(map(len, tensors)), small)
        refined, _ = truncate_tree(terms, tensors, goal)
        with monkeypatch.context() as patch:
            patch.setattr("metalora.tensornet.truncation.tree.hooi", lambda terms, whole, mine: mine)
            plain, _ = truncate_tree(terms, tensors, goal)
        errors = [error(terms, tensors, found) for found in (plain, hooi(terms, tensors, plain, 1), refined)]
        assert errors[2] <= errors[0] * (1 + 1e-12) and errors[1] <= errors[0] * (1 + 1e-12)
        better += errors[2] <= errors[1] < errors[0] * (1 - 1e-6)
    assert better > 5


def test_the_singular_vectors_of_tucker_are_those_of_the_unfoldings():
    terms, tensors, _, _ = network("tucker")
    whole = dense(terms, tensors)[..., 0]
    found = truncate(terms, tensors).tensors
    for mode in range(3):
        u, s, _ = torch.linalg.svd(whole.movedim(mode, 0).flatten(1), full_matrices=False)
        r = found[mode].shape[1]
        torch.testing.assert_close(found[mode].abs(), u[:, :r].abs(), rtol=1e-8, atol=1e-8)
        assert (found[mode].gather(0, found[mode].abs().argmax(0, keepdim=True)) > 0).all()
        rows = found[3][0].movedim(mode, 0).flatten(1)  # of the core, all-orthogonal
        torch.testing.assert_close(rows @ rows.mT, torch.diag(s[:r].square()), rtol=1e-8, atol=1e-8)


def test_a_chain_is_rounded_as_a_train():
    terms, tensors, _, _ = network("chain")
    cores = [tensors[0][None], tensors[1].permute(2, 0, 1), tensors[2].mT[..., None]]
    for options in (dict(mode="paper"), dict(gauge="right"), dict(gauge="balanced")):
        want = round_train(cores, ranks=(2, 2), **options)
        found = truncate(terms, tensors, ranks=dict(a=2, b=2), **options)
        torch.testing.assert_close(found.tensors[1].permute(2, 0, 1), want.cores[1], rtol=0, atol=0)
        torch.testing.assert_close(found.tensors[2].mT[..., None], want.cores[2], rtol=0, atol=0)
        assert tuple(found.discarded.values()) == want.discarded


# ---- rings and shared bonds -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOOSE)
def test_the_fit_never_raises_the_error_and_is_as_good_as_many_starts(name):
    terms, tensors, _, small = network(name, decay=0.9)
    found, starts = truncate(terms, tensors, ranks=small), []
    for seed in range(5):
        start, errors = network(name, 10 + seed, ranks=small, decay=1.0)[1], []
        for _ in range(4):
            errors.append(error(terms, tensors, start))
            start = fit_to_reference(terms, tensors, start, 3)
        assert errors == sorted(errors, reverse=True)
        starts.append(errors[-1])
    assert found.error <= min(starts) * 1.05


def test_the_columns_that_matter_stay_in_order():
    """Orthogonal columns: the longest stay as they are."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.linalg.qr(torch.randn(n, 5, generator=generator).double())[0] for n in (9, 8, 7)]
    factors[1] = factors[1] * torch.tensor([1.0, 3.0, 0.0, 2.0, 0.5]).double()
    found = truncate((("r",),) * 3, factors, ranks=dict(r=2), gauge="balanced")
    torch.testing.assert_close(
        dense([["r"]] * 3, found.tensors), dense([["r"]] * 3, [factor[:, [1, 3]] for factor in factors])
    )
    assert found.bound == pytest.approx(1.25**0.5) and found.tensors[0][:, 0].norm() > found.tensors[0][:, 1].norm()


def test_the_columns_are_about_the_best_and_have_their_best_weights():
    """Of all twenty choices of three columns in six, each with the weights of a dense least squares."""
    ratios = []
    for seed in range(10):
        terms, tensors, _, _ = network("cp", seed, decay=0.9)
        columns = torch.stack([dense(terms, [t[:, [j]] for t in tensors]).flatten() for j in range(6)], 1)
        whole, errors = columns.sum(1), []
        for chosen in combinations(range(6), 3):
            some = columns[:, list(chosen)]
            errors.append(float((whole - some @ torch.linalg.lstsq(some, whole).solution).norm()))
        found = truncate(terms, tensors, ranks=dict(r=3))
        assert any(found.bound == pytest.approx(one, rel=1e-6) for one in errors)
        ratios.append(found.bound / min(errors))
    assert max(ratios) < 1.2 and min(ratios) == pytest.approx(1)


# ---- the change of basis --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
@pytest.mark.parametrize("name", [name for name in NETWORKS if "ring" not in name])
def test_a_carried_mean_is_the_gradient_in_the_new_basis(name, gauge):
    terms, tensors, _, _ = network(name)
    weight = torch.randn(dense(terms, tensors).shape, generator=torch.Generator().manual_seed(3)).double()
    found = truncate(terms, tensors, gauge=gauge).tensors
    old, new = (_gradients(terms, some, weight) for some in (tensors, found))
    for one, two in zip(transport_moments(terms, tensors, found, old, squared=False), new, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8 * float(two.abs().max()))
    squares = transport_moments(terms, tensors, found, [g.square() for g in old], squared=True)
    assert all((one >= 0).all() and one.shape == two.shape for one, two in zip(squares, new, strict=True))


def _gradients(terms, tensors, weight):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad((torch.einsum(equation(terms), *leaves) * weight).sum(), leaves)


def test_a_ring_has_no_change_of_basis():
    terms, tensors, _, _ = network("ring")
    with pytest.raises(ValueError, match="no change of basis"):
        transport_moments(terms, tensors, tensors, tensors, squared=False)


# ---- wiring and what cannot be --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "spec, want",
    [
        ("a | a", "chain"),
        ("a | a b | b", "chain"),
        ("a b | a | b", "chain"),
        ("a | b | c | a b c", "tree"),
        ("r | r | r", "shared bond"),
        ("p q | q p", "ring"),
        ("p q | q r | r p", "ring"),
        ("p q | q r | r p | s | s", None),
        ("p q | q r | r p t | t", None),
        ("r | r | r q | q", None),
        ("a | a | b | b", None),
    ],
)
def test_wiring(spec, want):
    assert classify_topology([term.split() for term in spec.split("|")]) == want


def test_feasible_ranks():
    terms = (("a",), ("b",), ("a", "b"))
    assert feasible_ranks(terms, (9, 2, 1), dict(a=5, b=4)) == dict(a=2, b=2)
    assert feasible_ranks(terms, (9, 2, 3), dict(a=7, b=4)) == dict(a=6, b=2)
    assert feasible_ranks((("r",),) * 3, (1, 2, 3), dict(r=9)) == dict(r=9)


def test_infeasible_ranks_are_lowered_without_loss():
    terms, tensors, _, _ = network("tucker", ranks=dict(a=7, b=2, c=2))
    found = truncate(terms, tensors)
    assert found.ranks == dict(a=4, b=2, c=2) and error(terms, tensors, found.tensors) < 1e-12
    terms, tensors, _, _ = network("ring with a matrix", ranks=dict(p=2, q=3, r=4))
    found = truncate(terms, tensors)
    assert found.ranks == dict(p=2, q=3, r=2) and error(terms, tensors, found.tensors) < 1e-7


BAD = {
    "zero": (lambda w, t: truncate(w, [one * 0 for one in t]), "is zero"),
    "not finite": (lambda w, t: truncate(w, [t[0] / 0, *t[1:]]), "not finite"),
    "growing": (lambda w, t: truncate(w, t, ranks={w[0][0]: 9}), "9"),
    "rank zero": (lambda w, t: truncate(w, t, ranks={w[0][0]: 0}), "at least 1|rank 0 of bond"),
    "a small budget": (lambda w, t: truncate(w, t, budget=3), "a budget of 3 numbers is below .*, that of rank one"),
    "two targets": (lambda w, t: truncate(w, t, budget=90, tolerance=0.1), "give one of them"),
    "another wiring": (lambda w, t: truncate([*w, ("z",)], [*t, t[0]]), "are no chain, tree, ring or one bond"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ("tucker", "ring", "cp", "chain"))
def test_errors(name, call, message):
    terms, tensors, _, _ = network(name)
    with pytest.raises(ValueError, match=message):
        call(terms, tensors)


@pytest.mark.parametrize("name", ("tucker", "ring", "cp"))
def test_the_paper_s_algorithm_is_for_chains(name):
    terms, tensors, _, _ = network(name)
    with pytest.raises(ValueError, match="mode 'paper' is an algorithm of chains, and this is a"):
        truncate(terms, tensors, mode="paper")
