"""Lists the streams of a server, page by page."""

from tidegate.client import arguments
from tidegate.client.connection import Connection
from tidegate.client.types import STATES, StreamInfo, decode_stream_info
from tidegate.v1 import tidegate_pb2 as pb


async def fetch_page(
    connection: Connection, prefix: str, state: str, page_size: int, token: str, *, model: str, version: str
) -> tuple[list[StreamInfo], str]:
    """Does what `Client.streams_page` says."""
    request = pb.ListStreamsRequest(
        prefix=arguments.name("prefix", prefix),
        state=arguments.choice("state", state, {"": pb.Stream.STATE_UNSPECIFIED, **STATES}),
        page_size=arguments.integer("page_size", page_size, 0, arguments.UINT32_MAX),
        page_token=arguments.text("token", token),
        model=arguments.text("model", model),
        version=arguments.text("version", version),
    )
    answer = await connection.call_unary("ListStreams", request)
    streams = [
        decode_stream_info(stream)
        for stream in answer.streams
        if model in ("", stream.model) and version in ("", stream.version)  # an older server lists all
    ]
    return streams, answer.next_page_token
