"""CaRA (BonnBytes/CaRA, ICML 2025): CP of the query, key and value weights of all layers, with weights w.

The second tensor of the paper (output projection and MLP, in slices whose orientation differs by role) and its biases
are not here: two networks on one model, with a bias, are more than one declaration says.
"""

from metalora.methods.method import Method

CARA = Method(
    name="cara",
    title="CaRA (attention)",
    source="CaRA, ICML 2025",
    formula="ΔW_k[i, hJ+j] = s Σ_r w_r A1[k,r] A2[i,r] A3[h,r] A4[j,r]",
    factors={"w": "r", "A1": "layer proj r", "A2": "kh kw in r", "A3": "head r", "A4": "hdim r"},
    init={"w": "ones", "A1": "xavier", "A2": "zeros", "A3": "orthogonal", "A4": "orthogonal"},
    count="R*(L*M + K*I + H + J + 1)",
    folds={"out": "head hdim"},
    copies="",
    scale="alpha",
    any_rank=True,
)
