"""What people run from a checkout: ``python -m recipes.NAME``."""

from .command import quiet_while_importing

quiet_while_importing()
