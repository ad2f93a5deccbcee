"""Lets mapped flows through the operator's forward chains."""
