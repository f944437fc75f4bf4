"""Look at this machine and name what runs here, what does not, why, and what helps: ``snn-ext doctor``.

The status is 1 if there is an error: something that has to be mended before the package is of use. A warning costs
speed or a part of the package, a note says what there is not.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..recipes.lib.command import command
from .checks import CHECKS, Finding, examine

__all__ = ["Options", "diagnose", "main"]


@dataclass(kw_only=True)
class Options:
    """Options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Examine the machine, and return the exit status."""
    return int(any(finding.status == "error" for finding in diagnose(argv)))


@command
def diagnose(options: Options) -> list[Finding]:
    """Print what each check finds, as it comes."""
    found = []
    for check in CHECKS:
        for finding in examine(check):
            print(text(finding), flush=True)
            found.append(finding)
    counts = Counter(finding.status for finding in found)
    told = ", ".join(f"{counts[status]} {status}s" for status in ("error", "warning", "note") if counts[status])
    print(f"\n{told or 'all is well'}")
    return found


def text(finding: Finding) -> str:
    """Return a finding in lines of at most 100 characters.

    Examples
    --------
    >>> print(text(Finding("compiler", "warning", "no C compiler", "install gcc")))
    warning  compiler      no C compiler
                           remedy: install gcc
    """
    lines = textwrap.wrap(finding.found, 76, break_on_hyphens=False)
    if finding.remedy is not None:
        lines += textwrap.wrap(f"remedy: {finding.remedy}", 76, break_on_hyphens=False, subsequent_indent="  ")
    head = f"{finding.status:<9}{finding.check:<13} "
    return head + ("\n" + " " * len(head)).join(lines)
