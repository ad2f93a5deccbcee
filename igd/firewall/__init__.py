"""Deeds in the kernel; siblings never import each other, kernel.py composes them."""
