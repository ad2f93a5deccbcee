"""The operator's own rules: read, judged and advised on; nothing here changes them."""
