"""How fast: ratios against the rivals, measured in one process."""
