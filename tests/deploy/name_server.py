"""A DNS server that gives every name the same IPv4 addresses, as a headless service of Kubernetes does for its pods."""

import asyncio
import ipaddress
import struct
from collections.abc import Iterable
from typing import Self

# RFC 1035, section 4.1: the length of a header, the flags of an answer, the type of an address, and a pointer to the name in the question.
HEADER_BYTES = 12
ANSWER_FLAGS = 0x8580
TYPE_A, CLASS_IN = 1, 1
NAME_OF_QUESTION = 0xC00C
TTL_S = 1


class NameServer(asyncio.DatagramProtocol):
    """The server. Change `addresses` at any time. Use it as an async context manager."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self.addresses = list(addresses)
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> Self:
        """Starts it on a free port of localhost."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops it."""
        assert self._transport is not None
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one question. There are no IPv6 addresses."""
        assert self._transport is not None
        end = data.index(b"\0", HEADER_BYTES) + 5  # the name, its type and its class
        (kind,) = struct.unpack_from("!H", data, end - 4)
        found = [ipaddress.IPv4Address(address).packed for address in self.addresses] if kind == TYPE_A else []
        header = data[:2] + struct.pack("!HHHHH", ANSWER_FLAGS, 1, len(found), 0, 0)
        records = [
            struct.pack("!HHHIH", NAME_OF_QUESTION, TYPE_A, CLASS_IN, TTL_S, len(packed)) + packed for packed in found
        ]
        self._transport.sendto(header + data[HEADER_BYTES:end] + b"".join(records), addr)
