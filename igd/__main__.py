"""`python -m igd` is `igd`."""

from igd.cli import main

main()
