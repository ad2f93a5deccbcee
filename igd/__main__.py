"""Makes `python -m igd` the same as `igd`."""

from igd.cli import main

main()
