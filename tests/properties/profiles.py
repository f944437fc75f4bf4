"""How many examples a property gets: a fixed number in the default run, many times that in the long one.

``SNN_EXT_HYPOTHESIS=long`` selects the long run, with new random examples each time; any other number of times the
default is a number: ``SNN_EXT_HYPOTHESIS=5``. The default run is derandomised: the same examples everywhere.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

LONG = 25
CHOSEN = os.environ.get("SNN_EXT_HYPOTHESIS", "1")
TIMES = LONG if CHOSEN == "long" else int(CHOSEN)

COUNTS: Counter[str] = Counter()
"""Examples that every property has passed."""


def examples(count: int) -> Callable[[Any], Any]:
    """Give a property, decorated by ``given``, so many examples in the default run, and count those that pass."""
    options = settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Any) -> Any:
        inner = test.hypothesis.inner_test

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> None:
            inner(*args, **kwargs)
            COUNTS[f"{inner.__module__.rpartition('.')[2]}::{inner.__name__}"] += 1

        test.hypothesis.inner_test = counted
        return options(test)

    return decorate
