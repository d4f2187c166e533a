"""CaRA (BonnBytes/CaRA, ICML 2025): two CP tensors, one for the heads of query, key and value and one for the rest.

With widths="chunk" the second tensor has the paper's nine slices per layer: the output projection, four slices of the
first layer of the MLP along its outputs, and four of the second along its inputs. P2 is always the side that is cut, so
the network of all other weights is that of the transpose. There is one bias per projection for all layers, and it is
multiplied by the scale.
"""

from metalora.methods.method import Method, combine
from metalora.methods.records import AnyRank, Biased, Component, Transposed

CARA_ATTENTION = Method(
    name="cara-attention",
    title="CaRA (query, key and value only)",
    source="CaRA, ICML 2025",
    formula="ΔW_k[i, hJ+j] = s Σ_r w_r A1[k,r] A2[i,r] A3[h,r] A4[j,r]",
    factors={"w": "r", "A1": "layer proj r", "A2": "kh kw in r", "A3": "head r", "A4": "hdim r"},
    # one factor of zeros: the product is zero, and that factor has a gradient
    init={"w": "ones", "A1": "xavier", "A2": "zeros", "A3": "orthogonal", "A4": "orthogonal"},
    count="R*(L*M + K*I + H + J + 1)",
    folds={"out": "head hdim"},
    replicated_over="",
    scale="alpha",
    mechanisms=(AnyRank(),),
)

REST = Method(
    name="cara-rest",
    title="CaRA (all other weights)",
    source="CaRA, ICML 2025",
    formula="ΔW_k = s (Σ_t w2_t P1[k,t] P2[·,t] P3[·,t])^T + s b",
    factors={"w2": "t", "P1": "layer proj t", "P2": "in t", "P3": "kh kw out t", "b": "out"},
    init={"w2": "ones", "P1": "xavier", "P2": "zeros", "P3": "orthogonal", "b": "zeros"},
    count="R*(L*M + K*I + O + 1) + O",
    # the network is one for all targets, and so is the bias of a projection for all layers
    replicated_over={"w2": "", "P1": "", "P2": "", "P3": "", "b": "proj"},
    scale="alpha",
    mechanisms=(AnyRank(), Biased(("b",)), Transposed("chunks")),
)

CARA = combine(
    Component(CARA_ATTENTION, applies_to="heads"),
    Component(REST, applies_to="rest"),
    name="cara",
    title="CaRA",
    source="CaRA, ICML 2025",
    formula="ΔW_k[i, hJ+j] = s Σ_r w_r A1[k,r] A2[i,r] A3[h,r] A4[j,r];  elsewhere s Σ_t w2_t P1[k,t] P2[·,t] P3[·,t]",
    count="R*(L*M + K*I + H + J + 1);  elsewhere R*(L*M + K*I + O + 1) + O",
    scale="alpha",
    notes="There is one bias b per projection, shared by the layers; frozen: [b] leaves them out.",
)
