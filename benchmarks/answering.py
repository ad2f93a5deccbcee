"""A server that only answers, on the sockets of a gateway: what the other peer's flood costs a request by itself.

`python -m benchmarks.answering ADDRESS` listens on TCP 2869, UDP 5351 and UDP 1900, until it is killed.
"""

import asyncio
import sys
from typing import cast

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: 300\r\n\r\n" + b" " * 300


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data[:60], addr)


class _Answer(asyncio.Protocol):
    """Answers what has the end of a request's head, and closes the connection."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received = self._received[-3:] + data
        if b"\r\n\r\n" in self._received:
            self._transport.write(ANSWER)
            self._transport.close()


async def main(address: str) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    for port in (1900, 5351):
        await loop.create_datagram_endpoint(_Echo, (address, port))
    server = await loop.create_server(_Answer, address, 2869, backlog=512)
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
