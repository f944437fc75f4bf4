"""Simulation of spiking nets: the graph of a net, chunks of time through it, and its spike trains."""

from .engine import Simulation

__all__ = ["Simulation"]
