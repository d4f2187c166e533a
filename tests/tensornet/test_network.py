"""The algebra, on random networks: formats against explicit einsum, contractions, and the cut against the whole."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.formats import cp, matrix, ring, tt, tucker
from metalora.tensornet.forms.low_rank import LowRankForm
from metalora.tensornet.network import Network

EXPLICIT = {  # spec strings and the same wiring written out in letters: modes i l p o, bonds a b c d
    "matrix": (matrix(), ("ia", "ao"), "io"),
    "matrix of a kernel": (matrix("kh kw in"), ("hkia", "ao"), "hkio"),
    "cp": (cp("in layer out"), ("ia", "la", "oa"), "ilo"),
    "cp with a free vector": (cp({"A": "in", "c": "", "B": "out"}), ("ia", "a", "oa"), "io"),
    "tucker": (tucker("in layer out"), ("ia", "lb", "oc", "abc"), "ilo"),
    "tt of two": (tt("in out"), ("ia", "ao"), "io"),
    "tt": (tt("in layer proj out"), ("ia", "alb", "bpc", "co"), "ilpo"),
    "tt with a core of bonds only": (tt({"A": "in", "C": "", "B": "out"}), ("ia", "ab", "bo"), "io"),
    "ring": (ring({"A": "in", "B": "out", "C": ""}), ("aib", "boc", "ca"), "io"),
    "ring of four": (ring("in layer proj out"), ("aib", "blc", "cpd", "doa"), "ilpo"),
}
MODES = {"i": "in", "l": "layer", "p": "proj", "o": "out", "h": "kh", "k": "kw"}


@pytest.mark.parametrize("name", EXPLICIT)
@given(sizes=st.lists(st.integers(1, 4), min_size=10, max_size=10))
def test_formats_are_wired_as_written_out(name, sizes):
    specs, letters, out = EXPLICIT[name]
    size = dict(zip("ilophkabcd", sizes, strict=True))
    tensors = [torch.randn([size[letter] for letter in term], dtype=torch.float64) for term in letters]
    network = Network.parse(specs)
    assert [len(term) for term in network.factors.values()] == [len(term) for term in letters]
    mode_sizes = {
        m: n for t, v in zip(network.factors.values(), tensors, strict=True) for m, n in zip(t, v.shape, strict=True)
    }
    contraction = Contraction(list(network.factors.values()), [MODES[letter] for letter in out], mode_sizes)
    torch.testing.assert_close(
        contraction(tensors), torch.einsum(f"{','.join(letters)}->{out}", *tensors), rtol=1e-10, atol=1e-10
    )
    assert network.num_params(mode_sizes) == sum(t.numel() for t in tensors)


@st.composite
def equations(draw):
    """Terms over at most six letters, an output that keeps some of them, and their sizes."""
    terms = draw(
        st.lists(st.lists(st.sampled_from("abcdef"), max_size=4, unique=True).map(tuple), min_size=1, max_size=5)
    )
    letters_used = sorted({letter for term in terms for letter in term})
    out = draw(st.permutations(letters_used)) if letters_used else []
    return (
        terms,
        tuple(out[: draw(st.integers(0, len(out)))]),
        {letter: draw(st.integers(1, 3)) for letter in letters_used},
    )


@given(equations())
def test_contraction_is_einsum(case):
    terms, out, sizes = case
    tensors = [torch.randn([sizes[m] for m in term], dtype=torch.float64) for term in terms]
    equation = ",".join("".join(term) for term in terms) + "->" + "".join(out)
    got = Contraction(terms, out, sizes)(tensors)
    torch.testing.assert_close(got, torch.einsum(equation, *tensors), rtol=1e-10, atol=1e-10)


@st.composite
def networks(draw):
    """Factors that own in, kh and out, more that own nothing, random bonds between them, and which are per example."""
    own = {"A": draw(st.sampled_from((["in"], ["kh", "in"], ["in", "kh"]))), "B": ["out"]}
    own |= {name: [] for name in draw(st.sampled_from(("", "C", "CD", "CDE")))}
    names = list(own)
    for number in range(draw(st.integers(1, 5))):
        ends = draw(st.lists(st.sampled_from(names), min_size=2, max_size=3, unique=True))
        for name in ends:
            own[name].insert(draw(st.integers(0, len(own[name]))), f"r{number}")
    if not any(m.startswith("r") and m in own["B"] for m in own["A"]):
        for name in ("A", "B"):  # the cut needs a bond on its left and on its right
            own[name].append("s")
    sizes = {m: draw(st.integers(1, 3)) for term in own.values() for m in term}
    return {name: " ".join(modes) for name, modes in own.items()}, sizes, draw(st.sets(st.sampled_from(names)))


@given(networks(), st.integers(1, 3))
def test_left_mid_right_is_the_whole_contraction(case, batch):
    """Both ways through the cut (folded weights; activations through Mid and Right) equal one einsum per example."""
    specs, sizes, batched = case
    network = Network.parse(specs)
    cut = LowRankForm(network, sizes, batched)
    lead = lambda f: (batch,) if f in batched else ()  # noqa: E731
    values = {f: torch.randn((*lead(f), *network.shape(f, sizes)), dtype=torch.float64) for f in specs}
    inputs = [m for m in ("in", "kh", "kw") if m in sizes]
    letter = {mode: chr(ord("a") + k) for k, mode in enumerate(sizes)}
    equation = ",".join("".join(letter[m] for m in term.split()) for term in specs.values())
    equation += "->" + "".join(letter[m] for m in (*inputs, "out"))
    kernel, fold = (
        c([values[f] for f in side]) for c, side in ((cut.kernel, cut.left), (cut.fold, cut.mid + cut.right))
    )
    x = torch.randn(batch, 2, prod(sizes[m] for m in inputs), dtype=torch.float64)
    for i in range(batch):
        of_example = {f: v[i] if f in batched else v for f, v in values.items()}
        want = torch.einsum(equation, *of_example.values()).flatten(0, -2)  # (inputs, out)
        left = (kernel[i] if cut.left_batched else kernel).reshape(cut.rank, -1)
        right = (fold[i] if cut.fold_batched else fold).reshape(cut.rank, -1)
        torch.testing.assert_close(left.T @ right, want, rtol=1e-10, atol=1e-10)
        if not cut.mid_batched or batch == 1:
            continue
        hidden = (x @ left.T).unflatten(-1, cut.left_shape)
        mixed = cut.mix([hidden, *(values[f] for f in cut.mid)]).flatten(2)
        expand = cut.expand([values[f] for f in cut.right])
        expand = (expand[i] if cut.right_batched else expand).reshape(cut.right_rank, -1)
        torch.testing.assert_close(mixed[i] @ expand, x[i] @ want, rtol=1e-10, atol=1e-10)
    assert cut.rank <= prod(n for m, n in sizes.items() if m in specs["A"].split() and m not in inputs)


BAD_SPECS = {
    "a bond in one factor": ({"A": "in r", "B": "out"}, "'r' occurs in no other factor"),
    "a mode twice": ({"A": "in r r", "B": "r out"}, "mode 'r' occurs twice"),
    "an ill-formed mode": ({"A": "in R", "B": "R out"}, "'R' is not a mode name"),
    "batch written": ({"A": "batch in r", "B": "r out"}, "'batch' is carried by generated factors"),
    "no input": ({"A": "kh r", "B": "r out"}, "no factor has the input mode 'in'"),
    "no output": ({"A": "in r", "B": "r task"}, "no factor has the output mode 'out'"),
}


@pytest.mark.parametrize("specs, message", BAD_SPECS.values(), ids=BAD_SPECS)
def test_a_bad_spec_is_an_error_that_quotes_it(specs, message):
    with pytest.raises(ValueError, match=message):
        Network.parse(specs)


def test_the_plan_is_made_with_the_real_sizes():
    """x (A B) costs 2 * 64 * 64 * 64 multiply-adds more than (x A) B for one token."""
    terms, out = [("token", "in"), ("in", "r"), ("r", "out")], ("token", "out")
    one_token = Contraction(terms, out, {"token": 1, "in": 64, "r": 2, "out": 64})
    many_tokens = Contraction(terms, out, {"token": 10**6, "in": 64, "r": 60, "out": 64})
    assert one_token.steps[0] != many_tokens.steps[0] and one_token.flops <= 4 * 64 * 2 + 10
