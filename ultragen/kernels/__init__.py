"""Fused kernels, one file each, used where their library twins are many times slower."""
