"""The program `igd`."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C ends the program without a traceback, also while its modules are loaded."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else the caller had it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from igd import cli  # noqa: PLC0415 - it takes a while

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
