"""A mock OpenAI server for streams: every POST is answered with the same number of chunks.

Runs as a process of its own, so that it costs those it is measured with as little as it can.

    python benchmarks/gateway_mock.py PORT CHUNKS
"""

import asyncio
import sys

import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nConnection: close\r\n\r\n"
)
CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"mock",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
LAST = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"mock",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_chunks: int
) -> None:
    """Read one request; send its chunks, each in a write of its own."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [v for k, _, v in map(_split, head.split(b"\r\n")) if k == b"content-length"]
        await reader.readexactly(int(sizes[0]) if sizes else 0)
        writer.write(HEAD)
        for _ in range(num_chunks):
            writer.write(CHUNK)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(LAST)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


def _split(line: bytes) -> tuple[bytes, bytes, bytes]:
    name, colon, value = line.partition(b":")
    return name.lower(), colon, value


async def serve(port: int, num_chunks: int) -> None:
    """Serve until the process is stopped."""
    server = await asyncio.start_server(
        lambda reader, writer: answer(reader, writer, num_chunks), "127.0.0.1", port
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
