"""The subcommands of `igd`. Each imports what it needs when it runs, so that all start fast."""
