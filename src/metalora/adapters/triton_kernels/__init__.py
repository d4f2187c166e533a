"""The update of a linear layer as Triton kernels: one launch forward, two or three backward, beside the base's own.

`device` has the kernels, `launch` calls them on tensors, `node` is the node of the graph, and `path` says which layers
may take it. Only `device` and `launch` import triton, and only when the first kernel runs.
"""
