"""The one place that states Convoy's version."""

__version__ = "0.1.0"
