"""Compilation, cache, loading, comparison with torch and calls of C and CUDA sources."""
