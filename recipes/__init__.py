"""What people run from a checkout: ``python -m recipes.NAME``."""
