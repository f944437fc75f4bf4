"""Evaluation of spiking nets: the simulation engine."""

from .simulation import Simulation

__all__ = ["Simulation"]
