"""The best delay, and the regimes of a grid of delays."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("spikingjelly")

from snn_ext.evaluation import (  # noqa: E402
    Evaluation,
    best_delay,
    delay_regimes,
)


def with_latencies(latencies: dict[int, int | None], time_steps: int = 50) -> Evaluation:
    accuracy = torch.full((1, len(latencies), time_steps), 0.5)
    for row, (delay, latency) in enumerate(latencies.items()):
        accuracy[0, row, :delay] = torch.nan
        if latency is not None:
            accuracy[0, row, latency - 1 :] = 1.0
    return Evaluation(
        time_steps, 10, tuple(latencies), (1,), accuracy, (1.0,), torch.zeros(len(latencies), 50), [], 1, 0
    )


def test_best_delay_is_the_shortest_of_those_that_reach_the_level_first() -> None:
    assert best_delay(with_latencies({0: 30, 5: 20, 10: 20, 15: 25})) == 5
    with pytest.raises(ValueError, match="never reaches 99.0 % of the analog accuracy in 50 steps"):
        best_delay(with_latencies({0: None, 5: None}))


@pytest.mark.parametrize(
    ("latencies", "regimes"),
    [
        (
            {0: 30, 4: 30, 8: 20, 12: 15, 16: 15, 20: 22},
            [("no spike", 0, 4), ("error removal", 8, 16), ("excessive delay", 20, 20)],
        ),
        ({0: 10, 4: 10, 8: 12, 12: 16}, [("no spike", 0, 4), ("excessive delay", 8, 12)]),
        ({0: 30, 4: 20, 8: 10}, [("no spike", 0, 0), ("error removal", 4, 8)]),
        ({0: 30, 4: 30}, [("no spike", 0, 4)]),
        ({0: None, 4: 20, 8: None}, [("no spike", 0, 0), ("error removal", 4, 4), ("excessive delay", 8, 8)]),
    ],
)  # fmt: skip
def test_regimes_of_a_delay(latencies: dict[int, int | None], regimes: list[tuple[str, int, int]]) -> None:
    assert [(r.name, r.first, r.last) for r in delay_regimes(with_latencies(latencies))] == regimes
