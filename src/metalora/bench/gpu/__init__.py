"""The bench on a GPU: correctness in float32 and bfloat16, and times and memory of models of real size.

`python -m metalora.bench.gpu` runs all sections unattended within eight minutes on a card of the H100 class.
"""
