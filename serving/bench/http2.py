"""A light gRPC client that reads and writes HTTP/2 frames itself.

grpc.aio needs as much CPU in a client as in a server. On two cores a benchmark would then measure the client, and all
servers would look alike. This client writes a frame with one `pack` and reads it with a few slices. It compresses no
headers, and it reads headers only at the end of a call. It passes the bytes of each message to a callback. It respects
the flow control of the server and opens its own windows wide.

It is made for load generation in clear text. It has no proxies, no name resolution but that of the system, and no
retries.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Frame types, flags, settings and errors of RFC 9113, sections 6 and 7.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
CANCEL = 8
# A setting of gRPC: the values of `-bin` headers are sent as bytes, not in base64.
TRUE_BINARY_METADATA = 0xFE03
WINDOW_MAX = 2**31 - 1
WINDOW_DEFAULT = 2**16 - 1
# A WINDOW_UPDATE is sent when half of the window is used.
WINDOW_UPDATE_BYTES = 2**30
FRAME_BYTES_MAX = 2**14
FRAME_HEADER = struct.Struct(">BHBBI")
# The prefix of a gRPC message: one byte for the compression flag, four bytes for the length.
LENGTH_PREFIX = struct.Struct(">BI")
# The gRPC status codes that this client itself reports.
CANCELLED, UNKNOWN, UNAVAILABLE = 1, 2, 14

DETAILS = b"grpc-status-details-bin"

OnMessage = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class CallStatus:
    """How a call ended: the status code, the message and the trailers."""

    code: int
    message: str = ""
    trailers: tuple[tuple[str, bytes], ...] = ()


OnEnd = Callable[[CallStatus], None]


def length_prefixed(message: bytes) -> bytes:
    """Returns a message with its length prefix, as DATA frames carry it."""
    return LENGTH_PREFIX.pack(0, len(message)) + message


class Call:
    """One call. Both callbacks may be replaced while it runs. There are no callbacks after its end."""

    __slots__ = ("_buffer", "_connection", "_number", "_queue", "on_end", "on_message", "received", "window")

    def __init__(self, connection: "Connection", number: int, on_message: OnMessage, on_end: OnEnd) -> None:
        self.on_message = on_message
        self.on_end = on_end
        self.window = connection.initial_window  # bytes that the server accepts
        self.received = 0  # bytes since the last WINDOW_UPDATE
        self._connection = connection
        self._number = number
        self._buffer = bytearray()  # an incomplete message
        self._queue: deque[tuple[bytes, int]] = deque()  # chunks that wait for flow control, with their flags

    @property
    def blocked(self) -> bool:
        """Whether data waits for the flow control of the server."""
        return bool(self._queue)

    def send(self, message: bytes, *, last: bool = False) -> None:
        """Sends a message that is `length_prefixed` already. `last` ends the requests."""
        connection, size = self._connection, len(message)
        if self._queue or size > FRAME_BYTES_MAX or size > self.window or size > connection.window:
            for position in range(0, max(1, size), FRAME_BYTES_MAX):
                ends = last and position + FRAME_BYTES_MAX >= size
                self._queue.append((message[position : position + FRAME_BYTES_MAX], END_STREAM if ends else 0))
            self.flush()
            return
        self.window -= size
        connection.window -= size
        connection.write(FRAME_HEADER.pack(0, size, DATA, END_STREAM if last else 0, self._number) + message)

    def flush(self) -> None:
        """Sends the waiting data that the windows have room for."""
        connection, queue = self._connection, self._queue
        while queue and len(queue[0][0]) <= min(self.window, connection.window):
            chunk, flags = queue.popleft()
            self.window -= len(chunk)
            connection.window -= len(chunk)
            connection.write(FRAME_HEADER.pack(0, len(chunk), DATA, flags, self._number) + chunk)

    def half_close(self) -> None:
        """Ends the requests."""
        self.send(b"", last=True)

    def cancel(self) -> None:
        """Cancels the call. Nothing more is passed to the callbacks."""
        self.on_message = lambda _: None
        self._connection.cancel(self._number)

    def feed(self, payload: bytes) -> None:
        """Takes a part of the response data."""
        if not self._buffer and len(payload) - 5 == int.from_bytes(payload[1:5], "big"):
            self.on_message(payload[5:])  # one complete message: the usual case
            return
        buffer = self._buffer
        buffer += payload
        position = 0
        while len(buffer) - position >= LENGTH_PREFIX.size:
            end = position + LENGTH_PREFIX.size + LENGTH_PREFIX.unpack_from(buffer, position)[1]
            if len(buffer) < end:
                break
            message, position = bytes(buffer[position + LENGTH_PREFIX.size : end]), end
            self.on_message(message)
        del buffer[:position]


class Connection(asyncio.Protocol):
    """One connection, which carries many calls.

    Args:
        authority: the name of the server, for the `:authority` header.
        reads: False keeps the default windows and sends no WINDOW_UPDATE, like a client that does not read.
    """

    def __init__(self, authority: str, *, reads: bool = True) -> None:
        self.window = WINDOW_DEFAULT  # bytes that the server accepts, over all calls
        self.initial_window = WINDOW_DEFAULT  # the send window of a new call
        self._authority = authority
        self._reads = reads
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._header_blocks: dict[str, bytes] = {}  # by method
        self._calls: dict[int, Call] = {}
        self._next_number = 1
        self._buffer = b""  # an incomplete frame
        self._out: list[bytes] = []
        self._reading = False
        self._received = 0
        self._closed: CallStatus | None = None

    @classmethod
    async def open(cls, address: str, *, reads: bool = True) -> "Connection":
        """Connects to HOST:PORT or unix:PATH. Raises OSError."""
        loop = asyncio.get_running_loop()
        if address.startswith("unix:"):
            _, made = await loop.create_unix_connection(lambda: cls("localhost", reads=reads), address[5:])
        else:
            host, _, port = address.rpartition(":")
            _, made = await loop.create_connection(lambda: cls(address, reads=reads), host.strip("[]"), int(port))
        return made

    def call(self, method: str, on_message: OnMessage, on_end: OnEnd) -> Call:
        """Starts a call. `on_message` gets each response, `on_end` the status, unless the call was cancelled."""
        number = self._next_number
        self._next_number += 2
        call = Call(self, number, on_message, on_end)
        if self._closed is not None:
            self._loop.call_soon(on_end, self._closed)
            return call
        head = self._header_blocks.get(method)
        if head is None:
            head = self._header_blocks[method] = _encode_headers(method, self._authority)
        self._calls[number] = call
        self.write(_frame(HEADERS, END_HEADERS, number, head))
        return call

    def cancel(self, number: int) -> None:
        """Cancels a call."""
        if self._calls.pop(number, None) is not None:
            self.write(_frame(RST_STREAM, 0, number, struct.pack(">I", CANCEL)))

    def close(self) -> None:
        """Closes the connection and all its calls, without callbacks."""
        self._calls.clear()
        self._flush()
        self._transport.close()

    def write(self, data: bytes) -> None:
        """Sends frames. All frames of one iteration of the event loop leave in one write."""
        if not self._out and not self._reading:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the settings of this client."""
        self._transport = cast(asyncio.Transport, transport)
        # Without a dynamic header table each header block can be parsed on its own.
        settings = struct.pack(">HIHI", HEADER_TABLE_SIZE, 0, TRUE_BINARY_METADATA, 1)
        wide = b""
        if self._reads:
            settings += struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_MAX)
            wide = _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_MAX - WINDOW_DEFAULT))
        self._transport.write(PREFACE + _frame(SETTINGS, 0, 0, settings) + wide)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all calls."""
        self._end_calls(CallStatus(UNAVAILABLE, f"the connection broke: {exc or 'the server closed it'}"))

    def data_received(self, data: bytes) -> None:
        """Splits the data into frames."""
        data = self._buffer + data if self._buffer else data
        position, end = 0, len(data)
        self._reading = True
        while end - position >= FRAME_HEADER.size:
            high, low, kind, flags, number = FRAME_HEADER.unpack_from(data, position)
            start = position + FRAME_HEADER.size
            stop = start + (high << 16) + low
            if stop > end:
                break
            if kind != DATA:
                self._handle_frame(kind, flags, number, data[start:stop])
            elif (call := self._calls.get(number)) is not None:
                call.feed(data[start:stop])
                call.received += stop - start
                if call.received > WINDOW_UPDATE_BYTES:
                    call.received = self._update_window(number, call.received)
            if kind == DATA:
                self._received += stop - start
            position = stop
        self._buffer = data[position:]
        if self._received > WINDOW_UPDATE_BYTES:
            self._received = self._update_window(0, self._received)
        self._reading = False
        self._flush()

    def _handle_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.write(_frame(kind, ACK, 0, payload if kind == PING else b""))
            if kind == SETTINGS:
                self._apply_settings(payload)
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if not number:
                self.window += more
                self._flush_calls()
            elif (call := self._calls.get(number)) is not None:
                call.window += more
                call.flush()
        elif kind == GOAWAY:
            # Running calls continue. The server accepts no new ones.
            self._closed = CallStatus(
                UNAVAILABLE, f"the server accepts no more calls: {payload[8:].decode('utf-8', 'replace')}"
            )
        elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            call_ended = self._calls.pop(number, None)
            if call_ended is not None:
                call_ended.on_end(_trailer_status(payload) if kind == HEADERS else _reset_status(payload))

    def _apply_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.window += value - self.initial_window
                self.initial_window = value
                self._flush_calls()

    def _flush_calls(self) -> None:
        for call in self._calls.values():
            call.flush()

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _update_window(self, number: int, received: int) -> int:
        if self._reads:
            self.write(_frame(WINDOW_UPDATE, 0, number, struct.pack(">I", received)))
        return 0

    def _end_calls(self, status: CallStatus) -> None:
        self._closed = status
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.on_end(status)


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return FRAME_HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, number) + payload


def _encode_headers(method: str, authority: str) -> bytes:
    """Encodes the headers of a call without index and without Huffman coding, RFC 7541 section 6.2.2."""
    pairs = {":method": "POST", ":scheme": "http", ":path": method, ":authority": authority,
             "content-type": "application/grpc", "te": "trailers"}  # fmt: skip
    texts = [text.encode() for pair in pairs.items() for text in pair]
    assert max(map(len, texts)) < 127, "the length has one byte"
    return b"".join((b"" if index % 2 else b"\0") + bytes([len(text)]) + text for index, text in enumerate(texts))


def _reset_status(payload: bytes) -> CallStatus:
    number = int.from_bytes(payload, "big")
    return CallStatus(CANCELLED if number == CANCEL else UNAVAILABLE, f"the server reset the call with error {number}")


def _trailer_status(block: bytes) -> CallStatus:
    code, message, details = (_find_header(block, name) for name in (b"grpc-status", b"grpc-message", DETAILS))
    # A value that is marked as binary begins with a zero byte.
    trailers = ((DETAILS.decode(), details.removeprefix(b"\0")),) if details else ()
    return CallStatus(int(code) if code.isdigit() else UNKNOWN, unquote(message.decode("ascii", "replace")), trailers)


def _find_header(block: bytes, name: bytes) -> bytes:
    """Returns the value of a header. It is empty when the header is missing or Huffman-coded, which Tidegate never does.

    Without a table, each header is a name and a value, each with its length before it, RFC 7541 sections 5 and 6.2.
    """
    position = block.find(bytes([len(name)]) + name) + 1 + len(name)
    if position <= len(name) or block[position] & 0x80:
        return b""
    size, shift = block[position], 0
    while size >= 0x7F and (not shift or block[position] & 0x80):
        position += 1
        size += (block[position] & 0x7F) << shift
        shift += 7
    return block[position + 1 : position + 1 + size]
