"""Scripts to run from a checkout: ``python -m recipes.NAME``."""

from .lib.command import quiet_while_importing

quiet_while_importing()
