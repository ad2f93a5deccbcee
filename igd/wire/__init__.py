"""Bytes to words and back, pure; one specification per file."""
