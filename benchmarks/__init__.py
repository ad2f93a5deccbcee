"""How fast it is, beside Debian's miniupnpd on the same ground: `./benchmark`."""
