"""Benchmarks of the operators against what the hosts offer: ``python -m benchmarks --help``."""
