"""Federated-learning simulation: Flower clients run scaled local steps, one config runs in every engine."""

__version__ = "0.1.0"
