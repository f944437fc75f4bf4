"""How good: the studies that write the result pages of ``docs/``, one command each."""
