"""``python -m snn_ext``: the command ``snn-ext``."""

from .command import run

if __name__ == "__main__":
    run()
