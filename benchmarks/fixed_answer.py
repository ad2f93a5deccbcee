"""A server that gives every request the same answer: what connection, tunnel and client cost by themselves.

python -m benchmarks.fixed_answer ADDRESS PORT
"""

import socket
import sys

from benchmarks.soap import receive

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: 300\r\n\r\n" + b" " * 300


def main() -> None:
    """Serve until killed."""
    address, port = sys.argv[1:]
    with socket.create_server((address, int(port)), backlog=64) as listening:
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            connection, _ = listening.accept()
            with connection:
                receive(connection)
                connection.sendall(_ANSWER)


if __name__ == "__main__":
    main()
