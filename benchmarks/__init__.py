"""Benchmarks of the operators against what the hosts offer: ``python -m benchmarks --help``."""

from recipes.lib.command import quiet_while_importing

quiet_while_importing()
