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


def pissa(A, B, A_0, B_0):
    """PiSSA, arXiv:2404.02948, and OLoRA, arXiv:2406.01775: A and B less where they started; A, B are the changes."""
    return lora(A_0 + A, B_0 + B) - lora(A_0, B_0)


def dora_of_lora(rows, dense, d):
    """DoRA, arXiv:2402.09353 eq. 5, from W and LoRA's Delta W, both out x the rest: output by output, less W."""
    changes = []
    for row, update, change_of_norm in zip(rows, dense, d.flatten(), strict=True):
        magnitude, adapted = row.square().sum().sqrt() + change_of_norm, row + update
        changes.append(magnitude * adapted / adapted.square().sum().sqrt() - row)
    return torch.stack(changes)


def film(rows, gamma, beta=None):
    """FiLM, arXiv:1709.07871 eq. 2, as (1 + gamma) z + beta, and IA3: the change of W, which is out x the rest."""
    return torch.stack([number * row for number, row in zip(gamma.flatten(), rows, strict=True)])


def film_shift(bias, gamma, beta=None):
    """What FiLM adds to the outputs of a layer beyond the change of its weight."""
    scaled = torch.zeros(()) if bias is None else gamma.flatten() * bias
    return scaled if beta is None else scaled + beta.flatten()


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


# ---- other baselines; a task axis is there unless the task was chosen already ----------------------------------------
def _one(tensor, axis, ndim):
    """The first along an axis that is there if the tensor has `ndim` axes."""
    return tensor.select(axis, 0) if tensor.ndim == ndim else tensor


def _softmax(values):
    weights = [torch.exp(v) for v in values]
    return [w / sum(weights) for w in weights]


def lotr(U, C, V):
    """LoTR, arXiv:2402.01376: U C[l,p] V; FacT-TT is the same with another scale."""
    return U @ C[:, 0, 0] @ V


def fact_tk(U, C, P, V):
    """FacT-TK: U (sum_c C[:,:,c] P[c,k]) V."""
    return U @ sum(C[:, :, c] * P[c, 0, 0] for c in range(C.shape[2])) @ V


def lorta(A, C_H, C_L, C_P, B):
    """LoRTA, arXiv:2410.04060: blocks A diag(C_H[h] * C_L[l] * C_P[p]) B^T side by side on the outputs."""
    return torch.cat([A @ (row * C_L[0] * C_P[0] * B).T for row in C_H], -1)


def lorta_in(A, C_H, C_L, C_P, B):
    """LoRTA's code: the blocks one below another on the inputs."""
    return torch.cat([B @ (row * C_L[0] * C_P[0] * A).T for row in C_H], -2)


def cara(w, A1, A2, A3, A4):
    """CaRA: sum_r w_r A1[k,r] A2[i,r] A3[h,r] A4[j,r]."""
    return torch.cat([A2 @ (row * A1[0, 0] * w * A4).T for row in A3], -1)


def vera(A, d, B, b):
    """VeRA, arXiv:2310.11454: A diag(d) B diag(b)."""
    return A @ d.diag() @ B @ b.diag()


def tensorpeft(a, uL, uP, uI, uO):
    """TensorPEFT: sum_k a_k uL[l] uP[p] uI uO."""
    return sum(a[k] * uL[0, k] * uP[0, k] * _outer(uI[..., k], uO[:, k]) for k in range(len(a)))


def adalora(P, E, Q):
    """AdaLoRA, arXiv:2303.10512: P diag(E) Q."""
    return P @ E.diag() @ Q


def loha(A1, B1, A2, B2):
    """LoHa: (A1 B1) * (A2 B2), number by number."""
    return (A1 @ B1) * (A2 @ B2)


def lokr(C, A, B):
    """LoKr: the Kronecker product, for every place of the kernel."""
    inner = A @ B
    places = inner.flatten(0, -3) if inner.ndim > 2 else inner[None]
    dense = torch.stack([torch.kron(C, place) for place in places])
    return dense.reshape(*inner.shape[:-2], *dense.shape[1:])


def lokr_full(C, D):
    """LoKr with two full factors."""
    places = D.flatten(0, -3) if D.ndim > 2 else D[None]
    dense = torch.stack([torch.kron(C, place) for place in places])
    return dense.reshape(*D.shape[:-2], *dense.shape[1:])


def miss(A, D):
    """MiSS, arXiv:2409.15371: row i of the flat inputs is row i mod r of D."""
    rows = A.shape[:-1].numel()
    assert torch.equal(A.flatten(0, -2).argmax(1), torch.arange(rows) % len(D)) and A.sum() == rows
    return D[torch.arange(rows) % len(D)].reshape(*A.shape[:-1], -1)


def locon_tucker(A, M, B):
    """LoCon with a Tucker core: a 1 x 1 map down, the kernel among the ranks, a 1 x 1 map up."""
    return A @ M @ B


def loha_tucker(A1, M1, B1, A2, M2, B2):
    """LoHa whose two matrices have a core for the kernel."""
    return (A1 @ M1 @ B1) * (A2 @ M2 @ B2)


def lokr_tucker(C, A, M, B):
    """LoKr whose second factor has a core for the kernel."""
    return lokr(C, A @ M, B)


def tt_lora(G1, G2, G3, G4, G5, G6):
    """TT-LoRA: one train over the digits of in, then those of out; digits are big-endian."""
    whole = G1
    for core in (G2, G3, G4, G5, G6):
        whole = torch.tensordot(whole, core, 1)
    return whole.flatten(-3).flatten(-4, -2)


def loretta(A1, A2, A3, A4, B1, B2, B3, B4):
    """LoRETTA_rep: LoRA whose two matrices are folded trains."""
    A = torch.tensordot(torch.tensordot(torch.tensordot(A1, A2, 1), A3, 1), A4, 1).flatten(-4, -2)
    B = torch.tensordot(torch.tensordot(torch.tensordot(B1, B2, 1), B3, 1), B4, 1).flatten(0, 2)
    return A @ B.T


def mtl_lora(A, D, w, B):
    """MTL-LoRA, arXiv:2410.09437: A D_t sum_n softmax(w_t / 0.1)_n B_n."""
    weights = _softmax(_one(w, 0, 2) / 0.1)
    return A @ _one(D, 1, 3) @ sum(g * one for g, one in zip(weights, B, strict=True))


def task_lora(A, B):
    """One LoRA a task."""
    return A[0] @ B[0] if B.ndim == 3 else A @ B


def mtlora(A, B, At, Bt):
    """MTLoRA, arXiv:2403.20320: A B + A_t B_t."""
    return lora(A, B) + task_lora(At, Bt)


def moe_lora_shared(A, g, B):
    """MOELoRA with the gate of a task: sum_n softmax(g_t)_n A_n B_n."""
    return sum(weight * A[n] @ B[n] for n, weight in enumerate(_softmax(_one(g, 0, 2))))


def quanta(T12, T13, T23, T12_0, T13_0, T23_0):
    """QuanTA, arXiv:2406.00132: unit vectors through three gates on pairs of digits, less the same at the start.

    T is the learned change of a gate, T_0 its start.
    """

    def circuit(one, two, three):
        *kernel, n1, n2, m1, m2 = one.shape
        n3, m3 = two.shape[1], two.shape[3]
        units = torch.eye(n1 * n2 * n3, dtype=one.dtype).reshape(-1, n1, n2, n3)
        place = one.reshape(-1, n1, n2, m1, m2)
        found = [_gate(_gate(_gate(units, gate, 1, 2), two, 1, 3), three, 2, 3).flatten(1) for gate in place]
        return torch.stack(found).reshape(*kernel, n1 * n2 * n3, m1 * m2 * m3)

    return circuit(T12 + T12_0, T13 + T13_0, T23 + T23_0) - circuit(T12_0, T13_0, T23_0)


def _gate(x, gate, j, k):
    """A matrix on axes j and k taken together."""
    a, b, c, d = gate.shape
    x = x.movedim((j, k), (-2, -1))
    moved = (x.flatten(-2) @ gate.reshape(a * b, c * d)).unflatten(-1, (c, d))
    return moved.movedim((-2, -1), (j, k))


def loretta_adp(z, D1, D2, D3, D4, D5, U1, U2, U3, U4, U5, b, c):
    """LoRETTA_adp's change of a layer's output z: tanh(z D + b) U + c, both matrices folded trains."""

    def train(*cores):
        whole = cores[0]
        for core in cores[1:]:
            whole = torch.tensordot(whole, core, 1)
        return whole

    down = train(D1, D2, D3, D4, D5).flatten(0, 2).flatten(1)
    up = train(U1, U2, U3, U4, U5).flatten(0, 1).flatten(1)
    return torch.tanh(z @ down + b.flatten()) @ up + c


BOTTLENECKS = {"loretta-adp": loretta_adp}


def moe_lora_task(A, E, G, B):
    """MOELoRA with an embedding of the task: sum_n softmax(E[t] G)_n A_n B_n."""
    return moe_lora_shared(A, _one(E, 0, 2) @ G, B)


def cara_rest(w2, P1, P2, P3):
    """CaRA's second tensor where no inputs are cut: the transpose of sum_t w2_t P1[k,t] P2[a,t] P3[b,t]."""
    return sum(w2[t] * P1[0, 0, t] * _outer(P3[..., t], P2[:, t]) for t in range(len(w2)))


DENSE = {
    "quanta": quanta,
    "lotr": lotr,
    "fact-tt": lambda U, S, V: lotr(U, S, V),
    "fact-tk": fact_tk,
    "fact-tk-code": fact_tk,
    "lorta": lorta,
    "lorta-in": lorta_in,
    "cara": cara_rest,
    "cara-attention": cara,
    "vera": vera,
    "tensorpeft": tensorpeft,
    "rslora": lora,
    "adalora": adalora,
    "loha": loha,
    "lokr": lokr,
    "lokr-full": lokr_full,
    "miss": miss,
    "lorta-auto": lorta,
    "locon-tucker": locon_tucker,
    "loha-tucker": loha_tucker,
    "lokr-tucker": lokr_tucker,
    "tt-lora": tt_lora,
    "loretta-rep": loretta,
    "mtl-lora": mtl_lora,
    "mtlora": mtlora,
    "task-lora": task_lora,
    "moe-lora-shared": moe_lora_shared,
    "moe-lora-task": moe_lora_task,
    "lora": lora,
    "conv-lora": lora,
    "pissa": pissa,
    "olora": pissa,
    "dora": lambda A, B, d: lora(A, B),
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
FEATURE_WISE = ("film", "ia3")
BIASES = {"cara": ("b",), "film": ("beta",)}
OVER_RANK = {"lora", "conv-lora", "multi-lora", "moe-lora", "metalora-cp", "metalora-tr", "metalora-square"}
OVER_RANK |= {
    "lotr",
    "lorta",
    "lorta-in",
    "lorta-auto",
    "adalora",
    "loha",
    "lokr",
    "locon-tucker",
    "loha-tucker",
    "lokr-tucker",
    "loretta-rep",
}
OVER_RANK |= {"pissa", "olora", "dora", "mtl-lora", "task-lora", "moe-lora-shared", "moe-lora-task"}


def delta(method, factors, alpha=None, rank=None):
    """alpha / r (of OVER_RANK, else alpha) times the dense Delta W of one example; alpha None is a scale of one."""
    factors = {name: value for name, value in factors.items() if name not in BIASES.get(method, ())}
    rank = max(rank) if isinstance(rank, tuple) else rank
    over = {"rslora": 3**0.5}.get(method, rank if method in OVER_RANK else 1)  # rslora's case has rank 3
    scale = 1.0 if alpha is None else alpha / over
    return scale * (chain(*factors.values()) if DENSE[method] is chain else DENSE[method](**factors))


def to_base_layout(kind, dense, shape, groups=1):
    """[kernel] x in x out -> how PyTorch stores the weight (of this shape) of that kind of layer."""
    if kind in ("conv1d_gpt2", "embedding"):
        return dense  # in x out
    rows = dense.movedim(-1, 0).movedim(-1, 1)  # out x in x [kernel]
    if "transpose" not in kind:
        return rows.reshape(shape)  # the kernel of a Conv3d is depth, height and width
    stored = rows.new_empty(shape)  # (groups . in) x (out / groups) x [kernel]
    for o, i in product(range(len(rows)), range(rows.shape[1])):
        group, output = divmod(o, len(rows) // groups)
        stored[group * rows.shape[1] + i, output] = rows[o, i].reshape(shape[2:])
    return stored


def rows_of(kind, weight, groups=1):
    """A weight as PyTorch stores it for that kind of layer -> out x in x [kernel]."""
    if kind in ("conv1d_gpt2", "embedding"):
        return weight.T
    if "transpose" not in kind:
        return weight
    inputs, outputs = len(weight) // groups, weight.shape[1]
    rows = [weight[g * inputs : (g + 1) * inputs, o] for g, o in product(range(groups), range(outputs))]
    return torch.stack(rows)
