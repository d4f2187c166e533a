"""What all adapted layers share: a frozen base plus the low-rank form of a network that lands on its weight.

Legend: b batch · t token or position · n rows, b x t · k rank of the form · i, o channels in and out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.bound_target import BoundTarget
from metalora.adapters.conditioning.rows import TokenValues, tokens_as_examples
from metalora.adapters.kernels import Kernel, add_update, choose
from metalora.adapters.layers.base_layer import BaseLayer
from metalora.adapters.layers.mergeable import MergeableLayer
from metalora.adapters.own_forward import Dependence, run_with, try_forward
from metalora.adapters.plan import Form
from metalora.adapters.targets import Target
from metalora.adapters.weight_layout import along_outputs, outputs_first
from metalora.adapters.whole import run_whole
from metalora.tensornet.forms.bottleneck import Bottleneck
from metalora.tensornet.forms.circuit import Circuit
from metalora.tensornet.forms.feature_wise import FeatureWiseForm
from metalora.tensornet.forms.low_rank import LowRankForm

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values
    from metalora.adapters.forward_state import CastFactors


class AdaptedLayer(MergeableLayer):
    """y = base(x) + scale . ((x Left) Mid) Right.

    A kernel (`metalora.adapters.kernels`) does it; what differs between kinds of layers is abstract here and final in
    the subclasses.

    Args:
        base: The frozen layer.
        target: Its path and sizes.
        form: The planned form of the network at the target.
        adapter: Owner of the factors; the layer holds a reference that is not registered.
    """

    channels = -1  # the axis of the output that holds its channels
    gate_by_gate = True  # True if a circuit takes an input through its gates; False if it forms its kernel first

    def __init__(self, base: nn.Module, target: Target, form: Form, adapter: Adapter):
        super().__init__()
        self.base, self.target = cast(BaseLayer, base), target
        self.owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        # A subclass may have a forward of its own, which the fused kernels would not run.
        self.dependence = try_forward(base, target.kind).dependence
        self.is_plain = self.dependence is Dependence.PLAIN and not self.embeds  # no product of a lookup is saved
        self._positions_per_output = prod(getattr(base, "stride", (1,)))  # input positions for each output position
        self._last: list[Kernel | None] = [None]  # a list: Module.__setattr__ would cost a call in every forward
        self.bind(form)

    def bind(self, form: Form) -> None:
        """Resolve what the layer reads of its adapter, for this form of the adapter's layout."""
        assert not isinstance(form, Bottleneck | FeatureWiseForm), "these have layers of their own"
        self.form = form
        self.low_rank = None if isinstance(form, Circuit) else form  # a circuit is as wide as the weight
        self.bound = BoundTarget(self.owner[0], self.target.path, form)
        bound = self.bound
        # Selected once, so that a forward looks up no names; a handler needs all factors of the target together.
        self._left = bound.select(bound.left_factors) if bound.reads_as_stored else None
        # A linear forward takes Left in the place of the weight, but neither gates nor a scale that needs W + Delta W.
        needs_weight = form.full_rank or bool(bound.rescalers)
        self.runs_whole = self.dependence is Dependence.GENERAL or (
            self.dependence is Dependence.LINEAR and needs_weight
        )
        readable = bound.reads_as_stored and self.low_rank is not None
        self._fold = bound.select((*form.mid, *form.right)) if readable else None
        self._mid = None
        if readable and isinstance(form, LowRankForm) and form.mid_shape is not None:
            only_mid = form.mid_batched and not (form.left_batched or form.right_batched)
            self._mid = bound.select(tuple(form.mid)) if only_mid else None

    @property
    def kernel(self) -> Kernel | None:
        """The kernel that the last forward ran; None before the first."""
        return self._last[0]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return base(x) + the update of x: (*, i) -> (*, o), in the base's own layout.

        Args:
            x: The input.
            *args: Further arguments, of a base whose class has a forward of its own.
            **kwargs: The same by name.
        """
        if args or kwargs:
            return self._with_arguments(x, args, kwargs)
        adapter = self.owner[0]
        active = adapter.blocks.active.get()
        # A call less where no forward of the model is entered: every layer does this in every forward.
        simple = adapter.state.forward is None and not active.in_generators
        current = active if simple else adapter.current()
        if not current.enabled or self.original is not None:
            self.check_base(current.enabled)
            return cast(Tensor, self.base(x))
        values = current.values
        conditions = self.bound.num_conditions(values) if adapter.per_example else 1
        exchanged = False
        if type(values) is TokenValues:
            x, exchanged = tokens_as_examples(x, values, int(not self.embeds), self.target.path)
        # Linear layers take (*, i) as it is: only pictures and ids may need a batch axis.
        x, unbatched = self.as_batch(x, conditions) if self.channels > 0 or self.embeds else (x, False)
        kernel = choose(self, x, conditions)
        self._last[0] = kernel
        y = kernel.run(self, x, values, conditions)
        if exchanged:
            return y.transpose(0, 1)
        return y[0] if unbatched else y

    def _with_arguments(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return what the base's own forward gives with W + Delta W, for an input (*, i) and further arguments."""
        current = self.owner[0].current()
        if not current.enabled or self.original is not None:
            self.check_base(current.enabled)
            return cast(Tensor, self.base(x, *args, **kwargs))
        return run_whole(self, x, current.values, args, kwargs)

    def add_update(self, x: Tensor, y: Tensor, values: Values | None = None) -> Tensor:
        """Return y + the update of x, for an output y of the base that is known.

        Args:
            x: Input of the layer, (*, i), (b, i, *positions) or ids (b, ..).
            y: base(x), (*, o) or (b, o, *positions), with the base's own weight.
            values: The values that differ by example; None: those of the running forward.

        Returns:
            The output of the layer, in the shape of y (with the batch axis of x if y is one row for all examples).
        """
        current = self.owner[0].current()
        if not current.enabled or self.original is not None:
            self.check_base(current.enabled)
            return y
        values = current.values if values is None else values
        if self.runs_whole:
            return run_whole(self, x, values)
        if type(values) is TokenValues:
            x, exchanged = tokens_as_examples(x, values, int(not self.embeds), self.target.path)
            updated = add_update(self, x, y.transpose(0, 1) if exchanged else y, values)
            return updated.transpose(0, 1) if exchanged else updated
        conditions = self.bound.num_conditions(values)
        if self.channels > 0 or self.embeds:
            x, unbatched = self.as_batch(x, conditions)
            y = y[None] if unbatched else y.expand(x.shape[0], *y.shape[1:])
            updated = add_update(self, x, y, values)
            return updated[0] if unbatched else updated
        return add_update(self, x, y, values)

    # ---- the factors -----------------------------------------------------------------------------------------------
    def left_operands(self, values: Values | None, repeat: int = 1) -> list[Tensor]:
        """Return the factors of Left, each (*modes) or (b, *modes), in the order of the form.

        Args:
            values: The values that differ by example; None if none do.
            repeat: How many rows of the batch share one condition.
        """
        if self._left is not None:
            return self.bound.tensors(self._left, values, repeat)
        factors = self.bound.read(values, repeat=repeat)
        return [factors[name] for name in self.form.left]

    def left_kernel(self, values: Values | None, repeat: int = 1) -> Tensor:
        """Return Left as the form gives it, (b?, *bonds, i, *kernel)."""
        return self.form.kernel(self.left_operands(values, repeat))

    def left(self, values: Values | None, repeat: int = 1) -> Tensor:
        """Return Left as (k, i, *kernel), or (b, k, i, *kernel) if it differs by example."""
        if self._left is not None:  # without further calls: every layer does this in every forward
            kernel = self.form.kernel(self.bound.tensors(self._left, values, repeat))
        else:
            kernel = self.left_kernel(values, repeat)
        bonds = len(self.form.left_shape)
        if self.form.left_batched:
            kernel = kernel.flatten(1, bonds)
            left = kernel[0] if kernel.shape[0] == 1 else kernel  # one condition: a matrix, as the fused nodes take
        else:
            left = kernel.flatten(0, bonds - 1)  # (*bonds, i, *kernel) -> (k, i, *kernel)
        # A factor is mostly stored as (i, k). A CPU takes three to six times as long for a product with such a view as
        # for a copy of it; on a card the copy would be a launch.
        return left.contiguous() if left.device.type == "cpu" else left

    def up(self, values: Values | None, repeat: int = 1) -> Tensor:
        """Return scale . Mid . Right as (k, o), or (b, k, o) if it differs by example.

        Args:
            values: The values that differ by example; None if none do.
            repeat: How many rows of the batch share one condition.
        """
        form, bound = self.low_rank, self.bound
        assert form is not None, "a circuit has no Mid and no Right"
        forward = self.owner[0].state.forward
        folded = None if forward is None else forward.folded.get(bound.path)
        # Not in a checkpointed part, which is computed again without what the forward has folded.
        if folded is not None and torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            return folded
        if self._fold is not None:
            operands = bound.tensors(self._fold, values, repeat)
        else:
            factors = bound.read(values, repeat=repeat)
            operands = [factors[name] for name in (*form.mid, *form.right)]
        up = form.fold(operands).flatten(-1 - len(form.left_shape), -2)  # (b?, *bonds, o) -> (b?, k, o)
        if bound.scale != 1:
            up = up * bound.scale  # here and not at the output: this is the smallest of the tensors
        return up[0] if up.ndim == 3 and up.shape[0] == 1 else up

    def right(self, values: Values | None, repeat: int = 1) -> Tensor:
        """Return scale . Right as (k', o), or (b, k', o) if it differs by example.

        Args:
            values: The values that differ by example; None if none do.
            repeat: How many rows of the batch share one condition.
        """
        form = self.low_rank
        assert form is not None, "a circuit has no Right"
        factors = self.bound.read(values, form.right, repeat)
        up = form.expand([factors[name] for name in form.right])  # (b?, *bonds, o)
        lead = up.shape[:1] if form.right_batched else ()
        return self.scaled(up.reshape(*lead, form.right_rank, up.shape[-1]))

    def mid(self, values: Values | None, repeat: int = 1) -> Tensor | None:
        """Return Mid of each example as it is stored: (b, k, k'), or its diagonal (b, k).

        Args:
            values: The values that differ by example.
            repeat: How many rows of the batch share one condition.

        Returns:
            Mid; None if it has to be contracted, or if it is not what alone differs by example.
        """
        if self._mid is None:
            return None
        assert isinstance(self.form, LowRankForm), "only such a form has a Mid"
        (mid,) = self.bound.tensors(self._mid, values, repeat)
        shape = self.form.mid_shape
        assert shape is not None, "`bind` has selected a factor that is Mid"
        return mid if mid.shape[1:] == shape else mid.reshape(len(mid), *shape)

    def hidden_of_base(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute x Left by the base's own forward, with Left in the place of its weight.

        Args:
            x: Input of the layer, (b, .., i), (b, i, *positions) or ids (b, ..).
            kernel: Left as the form gives it, (b?, *bonds, i, *kernel).

        Returns:
            x Left in the layer's own hidden layout.
        """
        bonds, batched = len(self.form.left_shape), self.form.left_batched
        lefts = kernel.flatten(1, bonds) if batched else kernel.flatten(0, bonds - 1)[None]  # (b or 1, k, i, *kernel)
        weights = self.to_base_layout(lefts.movedim(1, -1))
        if len(weights) == 0:  # no examples: one run over none of them
            weights = weights.sum(0, keepdim=True)
        bias = getattr(self.base, "bias", None)
        zeros = {} if bias is None else {"bias": weights.new_zeros(self.form.left_rank)}
        examples = [x] if len(weights) == 1 else torch.split(x, 1)
        parts = [run_with(self.base, {"weight": w, **zeros}, part) for w, part in zip(weights, examples, strict=True)]
        h = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.channels > 0:
            return h
        examples_of_h = h.shape[0] if h.ndim > 1 else 1
        return h.reshape(examples_of_h, prod(h.shape[1:-1]), h.shape[-1])  # (b, t, k)

    def scaled(self, value: Tensor) -> Tensor:
        """Multiply a tensor of any shape by the scale of this target; return the tensor itself if the scale is 1."""
        return value if self.bound.scale == 1 else value * self.bound.scale

    # ---- examples and conditions -----------------------------------------------------------------------------------
    def check_batch(self, x: Tensor, conditions: int) -> None:
        """Check that the conditions fit the batch of an input (b, ..).

        Raises:
            ValueError: They fit neither the batch nor the beams of `generate`.
        """
        batch = self.examples(x)
        if conditions not in (1, batch) and conditions * self.owner[0].beams != batch:
            raise ValueError(
                f"target {self.target.path!r}: the condition is for {conditions} examples, the layer got {batch}"
            )

    def repeats(self, x: Tensor, conditions: int) -> int:
        """Return how many rows of an input (b, ..) share one condition: the beams of `generate`, otherwise 1."""
        return 1 if conditions in (1, self.examples(x)) else self.owner[0].beams

    def mix_or_fold(
        self, h: Tensor, x: Tensor, values: Values | None, conditions: int, cast: CastFactors | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose between (h Mid) Right and h (Mid Right) for factors that differ by example.

        Activations first if there are so few tokens that the per-example Mid touches fewer numbers that way.

        Args:
            h: Hidden activation (b, t, k).
            x: Input of the layer.
            values: The values that differ by example.
            conditions: How many conditions there are.
            cast: What the forward has cast for all targets together, or None.

        Returns:
            (b, t, k') and scale . Right as (k', o) or (b, k', o); or h and scale . Mid . Right.
        """
        form, repeat = self.low_rank, self.repeats(x, conditions)
        assert form is not None, "a circuit has no Mid and no Right"
        # With k = k', an example costs k k o multiply-adds to fold Mid and Right, and t k k to mix h: t against o.
        if conditions == 1 or not form.fold_batched or h.shape[1] > self.target.sizes["out"]:
            up = None if cast is None else cast.ups.get(self.bound.path)
            return h, self.up(values, repeat) if up is None else up
        factors = self.bound.read(values, form.mid, repeat)
        mids = [factors[name].to(h.dtype) for name in form.mid]
        h = form.mix([h.reshape(*h.shape[:-1], *form.left_shape), *mids]).flatten(2)  # (b, t, *bonds) -> (b, t, k')
        right = None if cast is None else cast.rights.get(self.bound.path)
        return h, self.right(values, repeat) if right is None else right

    def with_dropout(self, h: Tensor) -> Tensor:
        """Return the hidden activation after the adapter's dropout (in training), in the same layout."""
        adapter = self.owner[0]
        return adapter.rank_dropout(h) if adapter.training and adapter.dropout else h

    # ---- W + Delta W -----------------------------------------------------------------------------------------------
    def positions(self, x: Tensor) -> int:
        """Return the number of output positions of an input: b x t, or the pixels of all examples."""
        return x.numel() // self.target.sizes["in"] // self._positions_per_output

    def full_precision(self, x: Tensor) -> bool:
        """True in float32 and float64 without autocast, for an input of any shape.

        In 16 bits W + Delta W would round a small Delta W away.
        """
        return self.base.weight.dtype in (torch.float32, torch.float64) and autocast_dtype(x) is None

    def delta(self, values: Values | None) -> Tensor:
        """Return the dense Delta W in the base weight's layout.

        If a mechanism rescales the outputs by g, it is the difference of the effective weight from W:
        g (W + scale . Left . Mid . Right) - W.

        Args:
            values: The values that differ by example; None if none do.

        Returns:
            (*base weight), or (b, *base weight) if the factors differ by example.

        Raises:
            RuntimeError: A factor differs by example and `values` is None.
        """
        factors = self.bound.read(values)
        dense = self.dense(factors)
        if self.bound.rescalers:
            weight = self.base.weight.to(dense.dtype)
            scale = self.output_scale(factors, weight, weight + dense)  # (b or 1, o)
            dense = along_outputs(scale, self.target, weight.shape) * (weight + dense) - weight
        return dense if len(dense) > 1 else dense[0]

    def magnitude(self, values: Values | None) -> Tensor | None:
        """Return the norm that a mechanism gives to each output's weights (DoRA's m), for one condition.

        With V = W + scale . Left . Mid . Right and the output scale g it is g ||V||, output by output.

        Returns:
            (o,), or None if no mechanism rescales the outputs.
        """
        if not self.bound.rescalers:
            return None
        factors = self.bound.read(values)
        dense = self.dense(factors)
        weight = self.base.weight.to(dense.dtype)
        rows = outputs_first(weight + dense[:1], self.target)[0].flatten(1)  # (o, i x kernel)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
        return self.output_scale(factors, weight, weight + dense)[0] * norms

    def output_scale(self, factors: Mapping[str, Tensor], weight: Tensor, adapted: Tensor) -> Tensor:
        """Return g, the number by which the mechanisms multiply each output.

        Args:
            factors: Factor -> its value, as `BoundTarget.read` gives them.
            weight: W in the base's layout.
            adapted: W + Delta W, (b or 1, *weight).

        Returns:
            g (b or 1, o): the product over the mechanisms.
        """
        rows = outputs_first(weight[None], self.target)[0].flatten(1)  # (o, i x kernel)
        adapted_rows = outputs_first(adapted, self.target).flatten(2)  # (b or 1, o, i x kernel)
        scale = torch.ones(1, len(rows), dtype=weight.dtype, device=weight.device)
        for handler in self.bound.rescalers:
            handler_scale = handler.output_scale(rows, adapted_rows, factors)
            scale = scale if handler_scale is None else scale * handler_scale
        return scale

    def rescaled(self, y: Tensor, update: Tensor, values: Values | None, repeat: int) -> Tensor:
        """Return y + (g - 1) (y - bias) + g x Delta W, which is g x (W + Delta W) + bias.

        Args:
            y: base(x), in the layout of the base's output.
            update: x Delta W, in the same layout.
            values: The values that differ by example.
            repeat: How many rows of the batch share one condition.
        """
        factors = self.bound.read(values, repeat=repeat)
        weight = self.base.weight
        dense = self.dense(factors).to(weight.dtype)
        scale = self.output_scale(factors, weight, weight + dense)
        shape = [scale.shape[0], *[1] * (y.ndim - 1)]
        shape[self.channels] = scale.shape[1]
        g = scale.reshape(shape).to(y.dtype)  # (b or 1, .., o), or (b or 1, o, 1..) for a convolution
        bias = getattr(self.base, "bias", None)
        without_bias = y
        if bias is not None:
            bias_shape = [1] * y.ndim
            bias_shape[self.channels] = len(bias)
            without_bias = y - bias.reshape(bias_shape).to(y.dtype)
        # As a difference from y, so that a new adapter (g = 1, no update) gives y bit for bit.
        return y + (g - 1) * without_bias + g * update

    def dense(self, factors: Mapping[str, Tensor], up: Tensor | None = None) -> Tensor:
        """Return Delta W from the factors.

        Args:
            factors: Factor -> its value.
            up: scale . Mid . Right (k, o) or (b, k, o); None: it is computed from the factors.

        Returns:
            Delta W (b or 1, *base weight).
        """
        form = self.form
        left = form.kernel([factors[name] for name in form.left])  # (b?, *bonds, i, *kernel)
        left = left if form.left_batched else left[None]
        if form.full_rank:  # Left is (b, *outputs, i, *kernel), which is Delta W already
            return self.to_base_layout(self.scaled(left.flatten(1, len(form.left_shape)).movedim(1, -1)))
        up = self._fold_of(factors) if up is None else up
        up = up if up.ndim == 3 else up[None]  # (b or 1, k, o)
        inputs = left.shape[1 + len(form.left_shape) :]  # (i, *kernel)
        dense = left.reshape(len(left), form.left_rank, -1).mT @ up  # (b, inputs, o)
        return self.to_base_layout(dense.reshape(len(dense), *inputs, dense.shape[-1]))

    def _fold_of(self, factors: Mapping[str, Tensor]) -> Tensor:
        form = self.low_rank
        assert form is not None, "a circuit has no Mid and no Right"
        up = form.fold([factors[name] for name in (*form.mid, *form.right)])
        return self.scaled(up.flatten(-1 - len(form.left_shape), -2))

    def adapted_weight(self, values: Values | None) -> Tensor:
        """Return W + Delta W (*weight) of one condition, by one product into W if its layout allows it."""
        weight = self.base.weight
        if self.form.full_rank or not weight.is_contiguous():
            up = None if self.form.full_rank else self.up(values)
            return weight + self.dense(self.bound.read(values), up)[0].to(weight.dtype)
        left, up = self.left(values), self.up(values)
        return self.add_product(weight, left.to(weight.dtype).flatten(1), up.to(weight.dtype))

    def pair(self, values: Values | None) -> tuple[Tensor, Tensor]:
        """Return the exact LoRA pair of one condition.

        If a mechanism rescales the outputs, it is the pair of the network alone; see `magnitude`.

        Returns:
            Left (k, i, *kernel), and scale . Mid . Right (k, o).

        Raises:
            RuntimeError: A factor differs by example and `values` is None.
        """
        factors, form = self.bound.read(values), self.form
        left = form.kernel([factors[name] for name in form.left])
        left = left[0] if form.left_batched else left
        left = left.reshape(form.left_rank, *left.shape[len(form.left_shape) :])  # (k, i, *kernel)
        if form.full_rank:  # Left alone is Delta W as (o, i, *kernel)
            identity = torch.eye(form.left_rank, dtype=left.dtype, device=left.device)
            return self.as_kernel(left), self.scaled(identity)
        up = self._fold_of(factors)
        return self.as_kernel(left), up[0] if up.ndim == 3 else up

    # ---- biases ----------------------------------------------------------------------------------------------------
    def add_biases(self, y: Tensor, values: Values | None, repeat: int = 1) -> Tensor:
        """Return y + scale . bias of a method with biases + the change of the base's; y (b, .., o) or (b, o, *pos)."""
        for bias in self._scaled_biases(values, repeat):
            shape = [bias.shape[0], *[1] * (y.ndim - 1)]  # (b or 1, o), with an axis of 1 for each axis of positions
            shape[self.channels] = bias.shape[1]
            y = y + bias.reshape(shape).to(y.dtype)
        return y

    def _scaled_biases(self, values: Values | None, repeat: int = 1) -> list[Tensor]:
        """Return the scaled biases of the method and the change of the base's bias, each (b or 1, o)."""
        out, biases = self.target.sizes["out"], []
        if self.bound.bias_factors:
            factors = self.bound.read(values, self.bound.bias_factors, repeat)
            biases = [self.scaled(factors[name]).reshape(-1, out) for name in self.bound.bias_factors]
        if self.bound.bias_slot is not None:
            biases.append(self.owner[0].biases[self.bound.bias_slot].reshape(1, out))
        return biases

    def shift(self, values: Values | None) -> Tensor | None:
        """Return what is added to the base's bias for one condition (o,); None if nothing is."""
        if not self.bound.has_biases:
            return None
        return torch.stack([bias[0] for bias in self._scaled_biases(values)]).sum(0)

    # ---- what differs between kinds of layers ----------------------------------------------------------------------
    embeds = False  # True for layers whose input is ids

    def as_kernel(self, left: Tensor) -> Tensor:
        """Return Left (k, i, *kernel) with all axes that the kernel of the base has."""
        return left

    def dense_update(self, x: Tensor, y: Tensor, values: Values | None, conditions: int) -> Tensor | None:
        """Return x Delta W by way of Delta W, if this costs less than x Left, otherwise None.

        Args:
            x: Input of the layer, (b, ..).
            y: base(x), for the shape and the type of the result.
            values: The values that differ by example.
            conditions: How many conditions there are.
        """
        return None

    def as_batch(self, x: Tensor, conditions: int) -> tuple[Tensor, bool]:
        """Give an input the batch axis that the kernels expect.

        Returns:
            The input (b, ..), and True if the output must lose the batch axis again.
        """
        return x, False

    @abstractmethod
    def examples(self, x: Tensor) -> int:
        """Return the number of examples of an input. (`len` would be a constant for torch.export.)"""

    @abstractmethod
    def can_fuse(self, x: Tensor, grad: bool) -> bool:
        """Return True if base and update can share their passes: frozen base weights, one precision.

        Args:
            x: Input of the layer, (b, ..).
            grad: True if gradients are recorded.
        """

    @abstractmethod
    def fused(self, x: Tensor, down: Tensor | None, hidden: Tensor | None, up: Tensor) -> tuple[Tensor, Tensor]:
        """Compute base(x) + the update in one pass.

        Args:
            x: Input.
            down: Left (k, i, *kernel), or None if `hidden` is given.
            hidden: x Left of a sibling, or None.
            up: scale . Mid . Right (k, o).

        Returns:
            The output of the layer, and x Left in the layout that `hidden` has.
        """

    def has_triton_kernels(self, x: Tensor) -> bool:
        """Return True if a layer of this kind has `by_triton`, for the type in which it computes on an input (*, i)."""
        return False

    def by_triton(self, x: Tensor, left: Tensor, right: Tensor, mid: Tensor | None, index: Tensor | None) -> Tensor:
        """Compute base(x) + the update by Triton kernels.

        Args:
            x: Input (*, i).
            left: Left (k, i).
            right: scale . Right (k', o), with Mid folded into it if there is no `mid`.
            mid: Mid of each condition (m, k, k'), or None.
            index: The condition of each example, or None: example e has condition e.

        Returns:
            The output (*, o).
        """
        raise NotImplementedError(f"{type(self).__name__} has no Triton kernels")

    def can_mix_in_place(self, y: Tensor, hidden: Tensor) -> bool:
        """Return True if a layer of this kind has `mix_in_place`, for these results of `base_and_hidden`."""
        return False

    def mix_in_place(self, y: Tensor, hidden: Tensor, mid: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """Write (hidden Mid) Right into y, by one node of the graph.

        Args:
            y: What `base_and_hidden` has returned as base(x).
            hidden: x Left in the layer's own hidden layout.
            mid: Mid of each example (b, k, k'), or its diagonal (b, k).
            right: scale . Right (k', o).
            x: Input of the layer.

        Returns:
            y in the shape of the base's output.
        """
        raise NotImplementedError(f"{type(self).__name__} mixes in several steps")

    @abstractmethod
    def base_and_hidden(self, x: Tensor, down: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute base(x), which may be overwritten, and x Left.

        Args:
            x: Input.
            down: Left (k, i, *kernel) or (b, k, i, *kernel), or None if a sibling has computed x Left.

        Returns:
            base(x), and x Left in the layer's own hidden layout, or None if `down` is None.
        """

    @abstractmethod
    def add_in_place(self, y: Tensor, h: Tensor, up: Tensor, x: Tensor) -> Tensor:
        """Write y + h Right into y.

        Args:
            y: What `base_and_hidden` has returned as base(x).
            h: Hidden activation (b, t, k).
            up: Right (k, o) or (b, k, o).
            x: Input of the layer.

        Returns:
            y in the shape of the base's output.
        """

    @abstractmethod
    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute x Left in the layer's own hidden layout.

        Args:
            x: Input.
            kernel: Left as the form gives it, (b?, *bonds, i, *kernel).
        """

    @abstractmethod
    def through(self, x: Tensor, values: Values | None, repeat: int, dtype: torch.dtype) -> Tensor:
        """Compute x Delta W of a circuit, without the scale, in the layer's own hidden layout.

        Args:
            x: Input.
            values: The values that differ by example.
            repeat: How many rows of the batch share one condition.
            dtype: The type of the result.
        """

    @abstractmethod
    def tokens_first(self, h: Tensor, x: Tensor) -> Tensor:
        """Bring a hidden activation from the layer's own layout (or (n, k), of a linear layer) to (b, t, k)."""

    @abstractmethod
    def channels_first(self, h: Tensor) -> Tensor:
        """Bring a hidden activation from (b, t, k) to the layer's own hidden layout."""

    @abstractmethod
    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        """Compute h Right in the layer's own layout: h in its hidden layout, up (k, o) or (b, k, o)."""

    @abstractmethod
    def restore(self, out: Tensor, like: Tensor) -> Tensor:
        """Bring an update to the shape of `like`, the base's output."""

    @abstractmethod
    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Bring Delta W from (b, i, *kernel, o) to (b, *base weight)."""

    @abstractmethod
    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """Compute W + (Left' Right)' in the base's layout.

        Args:
            weight: W in the base's layout.
            left: Left (k, i x kernel).
            up: scale . Mid . Right (k, o).
        """

    @abstractmethod
    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Run the base's own forward on x (b, ..) with another weight (*weight)."""


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the type in which autocast computes on the device of x.

    Args:
        x: A tensor of any shape.

    Returns:
        The type, or None without autocast and for float64, which autocast leaves as it is.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if autocasts(device) and x.dtype != torch.float64 else None


def autocasts(device: str) -> bool:
    """Return True if autocast chooses the types of products on a kind of device; torch has no autocast of "meta"."""
    return device != "meta" and torch.is_autocast_enabled(device)


def cast_all(dtype: torch.dtype | None, *tensors: Any) -> tuple[Any, ...]:
    """Cast tensors to a type; None for the type or a tensor leaves it as it is."""
    if dtype is None:
        return tensors
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
