"""Train an analog net that is to be converted: under the constraints of the papers, or with batch norm.

``python -m recipes.train_analog --model vgg16 --out runs/vgg16``

The small preset is a narrow net for a CPU; ``--preset paper`` is the net and the training of its paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .lib.analog import AnalogOptions, AnalogTrainer, trained_net
from .lib.cli import Argument
from .lib.command import command, run_main


@dataclass(kw_only=True)
class Options(AnalogOptions):
    """Options."""

    start: Annotated[
        Path | None, Argument("--from", metavar="NET"), trained_net, "start from the weights of this trained net"
    ] = None  # fmt: skip


@command
def main(options: Options) -> dict[str, Any]:
    """Train, and print the accuracy."""
    trainer = AnalogTrainer()
    result = trainer.main(options)
    if trainer.rank == 0:
        print(f"{options.out}: {options.model}, {100 * result['test_acc1']:.2f} %; {result['data']}")
    return result


if __name__ == "__main__":
    run_main(main, "--resume continues")
