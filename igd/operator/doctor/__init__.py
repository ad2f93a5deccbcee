"""`igd doctor`: examines the host for what keeps peers from discovering, mapping and being reached."""
