"""FiLM (arXiv:1709.07871): a scale and a shift of each feature of a layer's output, learned or generated.

FiT (arXiv:2206.08671) trains them; CNAPs (arXiv:1906.07697) and Simple CNAPs (arXiv:1912.03432) generate them from a
support set. IA3 (arXiv:2205.05638) is the scale alone. The papers put FiLM behind a normalisation layer. Behind a
convolution that a frozen batch normalisation follows, it can represent the same functions, since that layer is itself a
scale and a shift of each channel.
"""

from metalora.methods.method import Method
from metalora.methods.records import Biased, FeatureWise

FILM = Method(
    name="film",
    title="FiLM",
    source="arXiv:1709.07871, eq. 2; arXiv:1906.07697",
    formula="ΔW = γ ⊙ W,  y = (1 + γ) ⊙ (W x + b) + β",
    factors={"gamma": "task out", "beta": "task out"},
    init={"gamma": "zeros", "beta": "zeros"},
    count="2*T*O",
    export="none",
    generated=("gamma", "beta"),
    scale="alpha",
    mechanisms=(FeatureWise(), Biased(("beta",))),
    notes="It has no rank. Merged exactly into a base with a bias; no LoRA equals it, since γ ⊙ W has full rank. "
    "Its targets are linear layers and convolutions, not normalisation layers.",
)

IA3 = Method(
    name="ia3",
    title="IA3",
    source="arXiv:2205.05638, eq. 1",
    formula="ΔW = γ ⊙ W,  y = (1 + γ) ⊙ (W x + b)",
    factors={"gamma": "task out"},
    init={"gamma": "zeros"},
    count="T*O",
    export="none",
    scale="alpha",
    mechanisms=(FeatureWise(),),
    notes="It has no rank, and no LoRA equals it. It scales outputs, as those of keys and values in the paper; the "
    "paper's scale of the hidden features of an MLP is one of the outputs of its first map only if the activation "
    "between them is linear in a scale, as ReLU is in a positive one.",
)
