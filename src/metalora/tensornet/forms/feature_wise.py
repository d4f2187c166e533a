"""A scale of each output and perhaps a shift: nothing is contracted, and Delta W depends on W."""

from math import prod

from metalora.tensornet.network import Network, Sizes


class FeatureWiseForm:
    """y = z + scale * z + shift, output by output, of an output z of the base.

    Args:
        network: One factor with the outputs as its modes, and biases.
        sizes: The size of every mode.

    Attributes:
        scale: The factor that multiplies the outputs.
        shifts: The factors that are added to them.
        width: The number of outputs.
        macs_per_token: Multiply-adds at one position.

    Example:
        >>> network = Network.parse({"g": "out", "b": "out"}, form="feature_wise", biases=["b"])
        >>> form = FeatureWiseForm(network, {"out": 768})
        >>> form.scale, form.shifts, form.macs_per_token
        ('g', ('b',), 768)
    """

    def __init__(self, network: Network, sizes: Sizes):
        [term] = network.split_terms()
        [self.scale] = term.factors
        self.shifts = network.biases
        self.width = self.macs_per_token = prod(sizes[mode] for mode in network.outputs)

    @property
    def rank(self) -> int:
        """The width of the output, since Delta W has full rank."""
        return self.width

    @property
    def summary(self) -> tuple[str, str, str]:
        """The identity, the scale and the identity in words."""
        return "identity", f"{self.scale}, output by output", "identity"
