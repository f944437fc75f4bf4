"""Energy of a spiking net from its operations, by a named model."""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import check_real

__all__ = ["ENERGY_45NM", "EnergyModel"]


@dataclass(frozen=True)
class EnergyModel:
    """Energy of one operation.

    Attributes
    ----------
    name : str
        Describes the model; figures of it quote this.
    accumulate, multiply_accumulate : float
        Energy of one operation in picojoule. Memory, routing and membrane updates are left out.

    Examples
    --------
    >>> ENERGY_45NM.spiking(synops=1000, macs=10)
    946.0
    """

    name: str
    accumulate: float
    multiply_accumulate: float

    def __post_init__(self) -> None:
        for name in ("accumulate", "multiply_accumulate"):
            check_real(name, getattr(self, name), "an energy in picojoule, >= 0", 0.0)

    def analog(self, macs: float) -> float:
        """Return the energy of an analog net in picojoule."""
        return self.multiply_accumulate * macs

    def spiking(self, synops: float, macs: float = 0.0) -> float:
        """Return the energy of a spiking net: accumulations of spikes, and multiply-accumulates of an analog input."""
        return self.accumulate * synops + self.multiply_accumulate * macs


ENERGY_45NM = EnergyModel("45 nm CMOS, 32-bit floating point, arithmetic only", 0.9, 4.6)
