"""Reads and changes the kernel's firewall; kernel.py composes the parts."""
