"""Codecs: pure translation between bytes and requests or replies, one specification a module."""
