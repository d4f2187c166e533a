"""Dense Delta W of every method for one example, from the papers: sums over bonds of outer products.

Nothing of ours. Factors are in the papers' order of modes; the modes of the kernel (kh, kw of a Conv2d,
kw of a Conv1d, none of a matrix) come before `in`. The result is [kernel] x in x out.
"""

from itertools import product

import torch


def _outer(left, right):
    """[kernel] x in and out -> [kernel] x in x out."""
    return left[..., None] * right


def lora(A, B):
    """LoRA, arXiv:2106.09685, and Conv-LoRA, arXiv:2504.00460 eq. 5: sum_r A[*,r] B[r,*]."""
    return sum(_outer(A[..., r], B[r]) for r in range(len(B)))


def multi_lora(A, B, s):
    """MultiLoRA, arXiv:2311.11501: sum_n A_n B_n diag(s_n)."""
    return sum(lora(A[n], B[n]) * s[n] for n in range(len(s)))


def moe_lora(A, g, B):
    """MOELoRA, arXiv:2310.18339: sum_n g_n A_n B_n with g the softmax of the logits."""
    weights = [torch.exp(g[n]) / sum(torch.exp(other) for other in g) for n in range(len(g))]
    return sum(weights[n] * lora(A[n], B[n]) for n in range(len(g)))


def cp(A, c, B):
    """MetaLoRA (CP), arXiv:2504.00460 eq. 6: sum_r A[*,r] c_r B[r,*]."""
    return sum(_outer(A[..., r], B[r]) * c[r] for r in range(len(c)))


def tr(A, B, C):
    """MetaLoRA (TR), arXiv:2504.00460 eq. 7: sum_{r0,r1,r2} A[r0,*,r1] B[r1,*,r2] C[r2,r0]."""
    n2, n0 = C.shape
    bonds = product(range(n0), range(len(B)), range(n2))
    return sum(_outer(A[r0][..., r1], B[r1, :, r2]) * C[r2, r0] for r0, r1, r2 in bonds)


def square(A, C, B):
    """A full square core: sum_{r0,r1} A[*,r0] C[r0,r1] B[r1,*]."""
    return sum(_outer(A[..., r], B[s]) * C[r, s] for r, s in product(range(len(C)), range(len(B))))


def chain(*cores):
    """MetaTT, arXiv:2506.09105 eqs. 3, 5 and 6 at layer 0, projection 0: one row-vector-matrix product after another.

    The first core is [kernel] x in x r; a middle core r x (layer, proj or task) x r, without that axis where it was
    chosen already; the last r x out, with a core r x head x r before it that is kept whole.
    """
    first, *middle, last = cores
    rows = [([first[..., r] for r in range(first.shape[-1])], ())]
    for core in middle:
        core = core if core.ndim == 3 else core[:, None]
        rows = [
            ([sum(left[a] * core[a, k, b] for a in range(len(left))) for b in range(core.shape[2])], (*which, k))
            for left, which in rows
            for k in range(core.shape[1])
        ]
    blocks = [sum(_outer(left[a], last[a]) for a in range(len(left))) for left, _ in rows]
    return torch.cat(blocks, -1)  # head by head


# ---- TensLoRA: modes in the order of its code (in, dh, H, 3, L); projection 0 and layer 0 are taken ----------------
TENSLORA = {
    "att": "IJH", "qkv": "IOM", "depth": "IOL", "att-qkv": "IJHM", "att-depth": "IJHL", "qkv-depth": "IOML",
    "att-qkv-depth": "IJHML",
}  # fmt: skip


def _at_first(tensor, modes):
    """[kernel] x in x ... over letters -> [kernel] x in x out at projection 0 and layer 0; heads h J + j."""
    tensor = tensor[(..., *(0 if one in "ML" else slice(None) for one in modes[1:]))]
    rest = [one for one in modes[1:] if one not in "ML"]
    tensor = tensor.movedim(-1, -2) if rest == ["J", "H"] else tensor
    return tensor.flatten(-2) if "J" in rest else tensor


def tenslora_tucker(modes, factors):
    """core x_1 F_1 x_2 F_2 ..., one product after another."""
    result, *rest = factors["core"], *modes[1:]
    result = torch.tensordot(factors["I"], result, 1)
    for one in rest:  # the next axis of the core is the first behind the input's
        result = torch.tensordot(result, factors[one], ([factors["I"].ndim - 1], [1]))
    return _at_first(result, modes)


def tenslora_cp(modes, factors):
    """sum_r of the outer product of the columns."""
    total = 0
    for r in range(factors["I"].shape[-1]):
        one = factors["I"][..., r]
        for letter in modes[1:]:
            one = one[..., None] * factors[letter][:, r]
        total = total + one
    return _at_first(total, modes)


def tenslora_chain(modes, factors, closed):
    """Matrices multiplied along in, layer, proj, head and output; closed: the trace of their product."""
    modes = "".join(one for one in "ILMHJO" if one in modes)
    result, *rest = (factors[one] for one in modes)
    for core in rest:
        result = torch.tensordot(result, core, 1)
    return _at_first(result.diagonal(dim1=0, dim2=-1).sum(-1) if closed else result, modes)


def _tenslora(name):
    construction, _, form = name.removeprefix("tenslora-").rpartition("-")
    construction, form = (construction, form) if form in ("cp", "tt", "ring") else (name[9:], "tucker")
    modes = TENSLORA[construction]
    if form in ("tt", "ring"):
        return lambda **factors: tenslora_chain(modes, factors, form == "ring")
    return lambda **factors: {"tucker": tenslora_tucker, "cp": tenslora_cp}[form](modes, factors)


DENSE = {
    "lora": lora,
    "conv-lora": lora,
    "multi-lora": multi_lora,
    "moe-lora": moe_lora,
    "metalora-cp": cp,
    "metalora-tr": tr,
    "metalora-square": square,
    "metatt-4d": chain,
    "metatt-5d": chain,
    "metatt-4+1d": chain,
    "metatt-6d": chain,
}
DENSE |= {name: _tenslora(name) for name in (f"tenslora-{c}{f}" for f in ("", "-cp", "-tt", "-ring") for c in TENSLORA)}
OVER_RANK = {"lora", "conv-lora", "multi-lora", "moe-lora", "metalora-cp", "metalora-tr", "metalora-square"}


def delta(method, factors, alpha=None, rank=None):
    """alpha / r (of OVER_RANK, else alpha) times the dense Delta W of one example; alpha None is a scale of one."""
    scale = 1.0 if alpha is None else alpha / rank if method in OVER_RANK else alpha
    return scale * (chain(*factors.values()) if DENSE[method] is chain else DENSE[method](**factors))


def to_base_layout(kind, dense):
    """[kernel] x in x out -> how PyTorch stores the weight of that kind of layer."""
    if kind == "linear":
        return dense.T  # out x in
    if kind == "conv1d":
        return dense.permute(2, 1, 0)  # out x in x kw
    if kind == "conv2d":
        return dense.permute(3, 2, 0, 1)  # out x in x kh x kw
    return dense  # GPT-2's Conv1D and Embedding: in x out
