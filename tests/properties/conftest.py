"""Prints how many examples every property has passed; a long run takes as long as it takes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.properties.profiles import COUNTS, TIMES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if TIMES > 1 else ():
        if "properties" in item.path.parts:
            item.add_marker(pytest.mark.timeout(0))  # the limit of the suite is for the default number of examples


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not COUNTS:
        return
    terminalreporter.section(f"properties: {len(COUNTS)}, {COUNTS.total():,} examples")
    for name, count in COUNTS.items() if TIMES > 1 else ():
        terminalreporter.write_line(f"{count:>8,}  {name}")
