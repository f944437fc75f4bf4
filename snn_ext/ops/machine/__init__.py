"""How C and CUDA sources of operators are compiled, cached, loaded, compared with torch and called."""
