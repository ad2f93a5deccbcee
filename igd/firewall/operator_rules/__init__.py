"""Reads the operator's own rules, judges and advises on them; changes none."""
