"""`igd setup`: plans what a machine needs to serve an interface, does it, records it, and undoes it."""
