"""Convolutions on a GPU: the four forward kernels of Sakiyama et al.'s and Chavan's studies."""
