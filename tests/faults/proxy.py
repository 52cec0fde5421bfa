"""A TCP proxy that can disturb the connections to a dependency of the services."""

import asyncio
import contextlib
from types import TracebackType
from typing import Literal, Self

CHUNK = 64 << 10
SLOW_SECONDS = 0.05


class Proxy:
    """
    Listens on 127.0.0.1:*port* and forwards connections to the port *target*, which may be set later.

    `cut` resets connections and refuses new ones; `hang` keeps them open but forwards nothing; `slow` delays each chunk
    in both directions; `heal` ends all of these.
    """

    def __init__(self, port: int, target: int = 0) -> None:
        self.port = port
        self.target = target
        self._state: Literal["open", "cut"] = "open"
        self._passing = asyncio.Event()
        self._passing.set()
        self._delay = 0.0
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """Reset open connections and refuse new ones."""
        self._state = "cut"
        self._passing.set()
        for writer in self._writers:
            writer.transport.abort()

    def hang(self) -> None:
        """Keep connections open but forward nothing."""
        self._passing.clear()

    def slow(self) -> None:
        """Delay each chunk by SLOW_SECONDS."""
        self._delay = SLOW_SECONDS

    def heal(self) -> None:
        """Forward everything again without delay."""
        self._state, self._delay = "open", 0.0
        self._passing.set()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._writers.add(to_client)
        try:
            if self._state == "cut":
                return
            server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(to_server)
            try:
                await asyncio.gather(self._pass(client, to_server), self._pass(server, to_client))
            finally:
                self._drop(to_server)
        except OSError:
            pass  # the client sees the connection close, which is all that a proxy can do
        finally:
            self._drop(to_client)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK):
            await self._passing.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            sink.write(chunk)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()
