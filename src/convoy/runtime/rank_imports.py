"""All that a rank imports, sooner or later; processes of a Ray of our own begin with it."""

from __future__ import annotations

import importlib

from convoy.runtime.memory import collector_paused

MODULES = ("convoy.runtime.member", "torch._dynamo")  # the latter for the first optimizer

with collector_paused():
    for name in MODULES:
        importlib.import_module(name)
