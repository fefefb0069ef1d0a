"""The lab: a cluster file's machines and links, emulated on one Linux computer."""

from convoy.lab.lab import Lab, check_possible, down, emulated, find, up

__all__ = ["Lab", "check_possible", "down", "emulated", "find", "up"]
