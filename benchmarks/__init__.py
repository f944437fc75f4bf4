"""Studies of speed, results and robustness: ``python -m benchmarks`` lists them."""

from recipes.lib.command import quiet_while_importing

quiet_while_importing()
