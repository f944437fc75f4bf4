"""The scripts that made the files in ``recipes/data``; nobody needs them to run a recipe."""
