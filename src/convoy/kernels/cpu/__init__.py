"""Convolutions on a CPU, compiled by Numba; threads are ours, and hold no lock while they work."""
