"""Verbs of `convoy conv`, a file each."""
