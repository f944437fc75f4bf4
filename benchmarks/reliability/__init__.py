"""Attacks on files, interruptions and hostile input, and what comes of them: ``python -m benchmarks.reliability``."""
