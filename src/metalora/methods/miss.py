"""MiSS (arXiv:2409.15371): the weight is cut into blocks of r inputs, and one small matrix is added to all of them.

Input i is at place i mod r of its block, so the sum over the blocks is a frozen matrix of ones and zeros. If r does not
divide the width, the last block is cut off.
"""

from metalora.methods.method import Method
from metalora.methods.records import AnyRank

MISS = Method(
    name="miss",
    title="MiSS",
    source="arXiv:2409.15371",
    formula="ΔW[i, o] = D[i mod r, o]",
    factors={"A": "kh kw in r", "D": "r out"},
    init={"A": "tiled", "D": "zeros"},  # A[i, r] = 1 if i mod R = r
    count="R*O",
    frozen=("A",),
    mechanisms=(AnyRank(),),
    scale="alpha",
    notes="PEFT's MiSS with init_weights=True. Not here: its modes 'bat' and 'mini'.",
)
