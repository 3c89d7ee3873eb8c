"""One function for each operation of the model, with its plain form and its fused ones behind it.

The only room that asks which device tensors are on, whether gradients are needed, and which kernels
run there (`dispatch`). Fused forms have files of their own, `triton_…` for GPUs and `cpu_…` for
CPUs, which are imported where they run.
"""
