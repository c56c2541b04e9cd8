"""Quantizing models with llm-compressor. Only toolkit.py needs torch; the rest is tested without it."""
