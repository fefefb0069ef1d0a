"""Convolutions by algorithms of ours, on a CPU and a GPU; what they take, and which is fastest."""

from convoy.kernels.layers import use_algorithm
from convoy.kernels.operation import convolve

__all__ = ["convolve", "use_algorithm"]
