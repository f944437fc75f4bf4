"""Prints how many examples every property has passed."""

from __future__ import annotations

from typing import Any

from tests.properties.profiles import COUNTS, TIMES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not COUNTS:
        return
    terminalreporter.section(f"properties: {len(COUNTS)}, {COUNTS.total():,} examples")
    for name, count in COUNTS.items() if TIMES > 1 else ():
        terminalreporter.write_line(f"{count:>8,}  {name}")
