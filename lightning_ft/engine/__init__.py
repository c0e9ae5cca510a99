"""The hot path: the loss at supervised positions only, and documents of a packed row kept apart.

`engine.loss` is what objectives and evaluation call; `engine.head` decides how a model's output layer is reached,
`engine.cross_entropy` is the arithmetic, `engine.attention` the attention function of packed rows (of each document:
`engine.document`, of a long one on a CPU: `engine.causal`), `engine.norm` the norm of decoders, `engine.gated` their gated
units and rotations. Kernels of our own for GPUs are in `engine.triton_kernels`.
"""
