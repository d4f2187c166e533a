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
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name, seed=0, decay=0.6, ranks=None):
    """(bonds of every factor, factors with unequal singular values in no particular gauge, ranks, smaller ranks)."""
    spec, sizes, large_ranks, small = NETWORKS[name]
    factor_bonds = tuple(tuple(bonds_of_factor.split()) for bonds_of_factor in spec.split("|"))
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for bonds_of_factor, n in zip(factor_bonds, sizes, strict=True):
        tensor = torch.randn(n, *[(ranks or large_ranks)[b] for b in bonds_of_factor], generator=generator).double()
        for axis, bond in enumerate(bonds_of_factor, start=1):
            scale = decay ** torch.arange((ranks or large_ranks)[bond]).double()
            tensor = tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1 - axis))
        tensors.append(tensor)
    return factor_bonds, tensors, large_ranks, small


def dense(factor_bonds, tensors):
    return torch.tensor(np.einsum(equation(factor_bonds), *[tensor.double().numpy() for tensor in tensors]))


def equation(factor_bonds):
    bonds = sorted({bond for bonds_of_factor in factor_bonds for bond in bonds_of_factor})
    open_letters = [chr(ord("A") + k) for k in range(len(factor_bonds))]
    inputs = [
        o + "".join(chr(ord("a") + bonds.index(b)) for b in bonds_of_factor)
        for o, bonds_of_factor in zip(open_letters, factor_bonds, strict=True)
    ]
    return ",".join(inputs) + "->" + "".join(open_letters)


def error(factor_bonds, first, second):
    """|T - T'| / |T|, of the dense tensors."""
    return float((dense(factor_bonds, first) - dense(factor_bonds, second)).norm() / dense(factor_bonds, first).norm())


def best(factor_bonds, tensors, ranks):
    """A lower bound of the error of any tree of these ranks: the tail of the worst cut, of dense unfoldings."""
    reference, errors = dense(factor_bonds, tensors), []
    for bond, rank in ranks.items():
        side = _side(factor_bonds, bond)
        rows = reference.permute(*side, *(k for k in range(len(factor_bonds)) if k not in side))
        values = torch.linalg.svdvals(rows.reshape(prod(reference.shape[k] for k in side), -1))
        errors.append(float(values[rank:].norm() / reference.norm()))
    return max(errors)


def _side(factor_bonds, bond):
    """The factors on one side of a bond of a tree."""
    side = [next(k for k, bonds_of_factor in enumerate(factor_bonds) if bond in bonds_of_factor)]
    for k in side:
        side += [
            j
            for b in factor_bonds[k]
            if b != bond
            for j, bonds_of_factor in enumerate(factor_bonds)
            if b in bonds_of_factor and j not in side
        ]
    return sorted(side)


# ---- what holds for all of them -------------------------------------------------------------------------------------
@every_network
@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
def test_without_truncation_nothing_changes(name, gauge):
    for seed in range(3):
        factor_bonds, tensors, ranks, _ = network(name, seed)
        truncated = truncate(factor_bonds, tensors, gauge=gauge)
        assert error(factor_bonds, tensors, truncated.tensors) < 1e-12
        assert truncated.ranks == ranks and truncated.bound == 0 and truncated.error < 1e-7


@every_network
def test_the_error_is_measured_and_within_its_bound(name):
    for seed in range(4):
        factor_bonds, tensors, _, small = network(name, seed, decay=0.6 + 0.1 * seed)
        truncated = truncate(factor_bonds, tensors, ranks=small)
        wrong = error(factor_bonds, tensors, truncated.tensors)
        assert truncated.ranks == small and 0 < wrong == pytest.approx(truncated.error, rel=1e-6)
        assert wrong <= truncated.bound / float(dense(factor_bonds, tensors).norm()) * (1 + 1e-9)


@every_network
def test_a_tensor_of_lower_rank_is_found_in_any_gauge(name):
    """Exact where the network has ranks that its tensor does not need."""
    factor_bonds, tensors, large_ranks, small = network(name, ranks=NETWORKS[name][3], decay=0.9)
    generator = torch.Generator().manual_seed(1)
    larger = list(tensors)
    for bond in small:
        ends = [k for k, bonds_of_factor in enumerate(factor_bonds) if bond in bonds_of_factor]
        if len(ends) > 2:  # columns of a shared bond: each is split into parallel ones
            index = torch.arange(large_ranks[bond]) % small[bond]
            larger = [tensor[:, index] for tensor in larger]
            larger[0] = larger[0] / index.bincount()[index]
            continue
        change = torch.randn(small[bond], large_ranks[bond], generator=generator).double()
        for k, matrix in zip(ends, (change, torch.linalg.pinv(change).mT), strict=True):
            axis = 1 + factor_bonds[k].index(bond)
            larger[k] = torch.tensordot(larger[k], matrix, ([axis], [0])).movedim(-1, axis)
    assert error(factor_bonds, tensors, larger) < 1e-12
    assert error(factor_bonds, larger, truncate(factor_bonds, larger, ranks=small).tensors) < 1e-7
    assert truncate(factor_bonds, larger, tolerance=1e-4).ranks == small


@every_network
def test_a_tolerance_is_kept(name):
    factor_bonds, tensors, ranks, _ = network(name)
    sums = []
    for tolerance in (0.3, 0.1, 1e-2, 1e-6):
        truncated = truncate(factor_bonds, tensors, tolerance=tolerance)
        assert error(factor_bonds, tensors, truncated.tensors) <= tolerance
        sums.append(sum(truncated.ranks.values()))
    assert sums == sorted(sums) and sums[0] < sums[-1] == sum(ranks.values())


@every_network
def test_a_budget_is_used_and_not_exceeded(name):
    factor_bonds, tensors, ranks, _ = network(name)
    num_params = sum(tensor.numel() for tensor in tensors)
    errors = []
    for budget in (num_params // 3, num_params // 2, num_params):
        truncated = truncate(factor_bonds, tensors, budget=budget)
        numbers = sum(tensor.numel() for tensor in truncated.tensors)
        assert numbers <= budget
        errors.append(truncated.error)
    assert errors == sorted(errors, reverse=True) and truncated.ranks == ranks and errors[0] > 1e-3


@every_network
def test_equal_input_gives_equal_output_in_the_dtype_of_the_factors(name):
    factor_bonds, tensors, _, small = network(name)
    tensors = [tensor.bfloat16() for tensor in tensors]
    first, second = (
        truncate(factor_bonds, tensors, ranks=small),
        truncate(factor_bonds, [t.clone() for t in tensors], ranks=small),
    )
    assert all(
        torch.equal(a, b) and a.dtype == torch.bfloat16 for a, b in zip(first.tensors, second.tensors, strict=True)
    )
    exact = truncate(factor_bonds, [tensor.double() for tensor in tensors], ranks=small)
    assert error(factor_bonds, exact.tensors, first.tensors) < 3e-2


@pytest.mark.parametrize("name", [name for name in NETWORKS if "ring" not in name])
def test_signs_of_factors_do_not_matter(name):
    """The largest entry of every singular vector or column is positive, so that a flipped bond changes nothing."""
    factor_bonds, tensors, ranks, _ = network(name)
    flipped = list(tensors)
    for bond in ranks:
        sign = torch.diag(torch.where(torch.arange(ranks[bond]) % 2 == 0, -1.0, 1.0).double())
        for k in [k for k, bonds_of_factor in enumerate(factor_bonds) if bond in bonds_of_factor][:2]:
            axis = 1 + factor_bonds[k].index(bond)
            flipped[k] = torch.tensordot(flipped[k], sign, ([axis], [0])).movedim(-1, axis)
    for first, second in zip(
        truncate(factor_bonds, tensors).tensors, truncate(factor_bonds, flipped).tensors, strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-9)


@every_network
def test_gauges_put_the_norm_where_they_say(name):
    """Elsewhere, orthonormal columns towards it: as many as a bond has; of a shared bond, columns of length one."""
    factor_bonds, tensors, _, _ = network(name)
    left, right, balanced = (
        truncate(factor_bonds, tensors, gauge=gauge).tensors for gauge in ("left", "right", "balanced")
    )
    last = 1 if name == "chain, middle declared last" else len(factor_bonds) - 1
    for truncated, holder in ((left, last), (right, 0)):
        for k, tensor in enumerate(truncated):
            square = float(tensor.square().sum())
            assert k == holder or any(square == pytest.approx(n, rel=1e-9) for n in tensor.shape[1:])
    assert max(float(tensor.norm()) for tensor in balanced) < max(float(tensor.norm()) for tensor in left)


# ---- trees ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TREES)
def test_quasi_optimal(name):
    """Between the best possible error and the root of the number of bonds times it."""
    for seed in range(5):
        factor_bonds, tensors, _, small = network(name, seed, decay=0.5 + 0.1 * seed)
        truncated, best_error = truncate(factor_bonds, tensors, ranks=small), best(factor_bonds, tensors, small)
        assert best_error * (1 - 1e-9) <= truncated.error <= sqrt(len(small)) * best_error * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in TREES if "chain" not in name])
def test_hooi_is_never_worse_than_hosvd(name, monkeypatch):
    better = 0
    for seed in range(10):
        factor_bonds, tensors, ranks, small = network(name, seed, decay=0.9)
        target = TruncationTarget(factor_bonds, tuple(map(len, tensors)), small)
        refined, _ = truncate_tree(factor_bonds, tensors, target)
        with monkeypatch.context() as patch:
            patch.setattr(
                "metalora.tensornet.truncation.tree.hooi", lambda factor_bonds, reference, approximation: approximation
            )
            plain, _ = truncate_tree(factor_bonds, tensors, target)
        errors = [
            error(factor_bonds, tensors, truncated)
            for truncated in (plain, hooi(factor_bonds, tensors, plain, 1), refined)
        ]
        assert errors[2] <= errors[0] * (1 + 1e-12) and errors[1] <= errors[0] * (1 + 1e-12)
        better += errors[2] <= errors[1] < errors[0] * (1 - 1e-6)
    assert better > 5


def test_the_singular_vectors_of_tucker_are_those_of_the_unfoldings():
    factor_bonds, tensors, _, _ = network("tucker")
    reference = dense(factor_bonds, tensors)[..., 0]
    truncated = truncate(factor_bonds, tensors).tensors
    for mode in range(3):
        u, s, _ = torch.linalg.svd(reference.movedim(mode, 0).flatten(1), full_matrices=False)
        r = truncated[mode].shape[1]
        torch.testing.assert_close(truncated[mode].abs(), u[:, :r].abs(), rtol=1e-8, atol=1e-8)
        assert (truncated[mode].gather(0, truncated[mode].abs().argmax(0, keepdim=True)) > 0).all()
        rows = truncated[3][0].movedim(mode, 0).flatten(1)  # of the core, all-orthogonal
        torch.testing.assert_close(rows @ rows.mT, torch.diag(s[:r].square()), rtol=1e-8, atol=1e-8)


def test_a_chain_is_rounded_as_a_train():
    factor_bonds, tensors, _, _ = network("chain")
    cores = [tensors[0][None], tensors[1].permute(2, 0, 1), tensors[2].mT[..., None]]
    for options in (dict(mode="paper"), dict(gauge="right"), dict(gauge="balanced")):
        want = round_train(cores, ranks=(2, 2), **options)
        truncated = truncate(factor_bonds, tensors, ranks=dict(a=2, b=2), **options)
        torch.testing.assert_close(truncated.tensors[1].permute(2, 0, 1), want.cores[1], rtol=0, atol=0)
        torch.testing.assert_close(truncated.tensors[2].mT[..., None], want.cores[2], rtol=0, atol=0)
        assert tuple(truncated.discarded.values()) == want.discarded


# ---- rings and shared bonds -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOOSE)
def test_the_fit_never_raises_the_error_and_is_as_good_as_many_starts(name):
    factor_bonds, tensors, _, small = network(name, decay=0.9)
    truncated, starts = truncate(factor_bonds, tensors, ranks=small), []
    for seed in range(5):
        start, errors = network(name, 10 + seed, ranks=small, decay=1.0)[1], []
        for _ in range(4):
            errors.append(error(factor_bonds, tensors, start))
            start = fit_to_reference(factor_bonds, tensors, start, 3)
        assert errors == sorted(errors, reverse=True)
        starts.append(errors[-1])
    assert truncated.error <= min(starts) * 1.05


def test_the_columns_that_matter_stay_in_order():
    """Orthogonal columns: the longest stay as they are."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.linalg.qr(torch.randn(n, 5, generator=generator).double())[0] for n in (9, 8, 7)]
    factors[1] = factors[1] * torch.tensor([1.0, 3.0, 0.0, 2.0, 0.5]).double()
    truncated = truncate((("r",),) * 3, factors, ranks=dict(r=2), gauge="balanced")
    torch.testing.assert_close(
        dense([["r"]] * 3, truncated.tensors), dense([["r"]] * 3, [factor[:, [1, 3]] for factor in factors])
    )
    assert (
        truncated.bound == pytest.approx(1.25**0.5)
        and truncated.tensors[0][:, 0].norm() > truncated.tensors[0][:, 1].norm()
    )


def test_the_columns_are_about_the_best_and_have_their_best_weights():
    """Of all twenty choices of three columns in six, each with the weights of a dense least squares."""
    ratios = []
    for seed in range(10):
        factor_bonds, tensors, _, _ = network("cp", seed, decay=0.9)
        columns = torch.stack([dense(factor_bonds, [t[:, [j]] for t in tensors]).flatten() for j in range(6)], 1)
        reference, errors = columns.sum(1), []
        for chosen in combinations(range(6), 3):
            some = columns[:, list(chosen)]
            errors.append(float((reference - some @ torch.linalg.lstsq(some, reference).solution).norm()))
        truncated = truncate(factor_bonds, tensors, ranks=dict(r=3))
        assert any(truncated.bound == pytest.approx(first, rel=1e-6) for first in errors)
        ratios.append(truncated.bound / min(errors))
    assert max(ratios) < 1.2 and min(ratios) == pytest.approx(1)


# ---- the change of basis --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
@pytest.mark.parametrize("name", [name for name in NETWORKS if "ring" not in name])
def test_a_carried_mean_is_the_gradient_in_the_new_basis(name, gauge):
    factor_bonds, tensors, _, _ = network(name)
    weight = torch.randn(dense(factor_bonds, tensors).shape, generator=torch.Generator().manual_seed(3)).double()
    truncated = truncate(factor_bonds, tensors, gauge=gauge).tensors
    old, new = (_gradients(factor_bonds, some, weight) for some in (tensors, truncated))
    for first, second in zip(transport_moments(factor_bonds, tensors, truncated, old, squared=False), new, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8 * float(second.abs().max()))
    squares = transport_moments(factor_bonds, tensors, truncated, [g.square() for g in old], squared=True)
    assert all((first >= 0).all() and first.shape == second.shape for first, second in zip(squares, new, strict=True))


def _gradients(factor_bonds, tensors, weight):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad((torch.einsum(equation(factor_bonds), *leaves) * weight).sum(), leaves)


def test_a_ring_has_no_change_of_basis():
    factor_bonds, tensors, _, _ = network("ring")
    with pytest.raises(ValueError, match="not a change of basis"):
        transport_moments(factor_bonds, tensors, tensors, tensors, squared=False)


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
    assert classify_topology([bonds_of_factor.split() for bonds_of_factor in spec.split("|")]) == want


def test_feasible_ranks():
    factor_bonds = (("a",), ("b",), ("a", "b"))
    assert feasible_ranks(factor_bonds, (9, 2, 1), dict(a=5, b=4)) == dict(a=2, b=2)
    assert feasible_ranks(factor_bonds, (9, 2, 3), dict(a=7, b=4)) == dict(a=6, b=2)
    assert feasible_ranks((("r",),) * 3, (1, 2, 3), dict(r=9)) == dict(r=9)


def test_infeasible_ranks_are_lowered_without_loss():
    factor_bonds, tensors, _, _ = network("tucker", ranks=dict(a=7, b=2, c=2))
    truncated = truncate(factor_bonds, tensors)
    assert truncated.ranks == dict(a=4, b=2, c=2) and error(factor_bonds, tensors, truncated.tensors) < 1e-12
    factor_bonds, tensors, _, _ = network("ring with a matrix", ranks=dict(p=2, q=3, r=4))
    truncated = truncate(factor_bonds, tensors)
    assert truncated.ranks == dict(p=2, q=3, r=2) and error(factor_bonds, tensors, truncated.tensors) < 1e-7


BAD = {
    "zero": (lambda w, t: truncate(w, [first * 0 for first in t]), "is zero"),
    "not finite": (lambda w, t: truncate(w, [t[0] / 0, *t[1:]]), "not finite"),
    "growing": (lambda w, t: truncate(w, t, ranks={w[0][0]: 9}), "9"),
    "rank zero": (lambda w, t: truncate(w, t, ranks={w[0][0]: 0}), "at least 1|rank 0 of bond"),
    "a small budget": (lambda w, t: truncate(w, t, budget=3), "a budget of 3 numbers is below .*, that of rank one"),
    "two targets": (lambda w, t: truncate(w, t, budget=90, tolerance=0.1), "give one of them"),
    "another wiring": (lambda w, t: truncate([*w, ("z",)], [*t, t[0]]), "are not a chain, a tree, a ring or one bond"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ("tucker", "ring", "cp", "chain"))
def test_errors(name, call, message):
    factor_bonds, tensors, _, _ = network(name)
    with pytest.raises(ValueError, match=message):
        call(factor_bonds, tensors)


@pytest.mark.parametrize("name", ("tucker", "ring", "cp"))
def test_the_paper_s_algorithm_is_for_chains(name):
    factor_bonds, tensors, _, _ = network(name)
    with pytest.raises(ValueError, match="mode 'paper' is an algorithm of chains, and this is a"):
        truncate(factor_bonds, tensors, mode="paper")
