"""A WebSocket server and a client of it: websocket_echo.py (serve PORT | check ADDRESS CA CLIENT | stay ADDRESS CA)

`stay` keeps one connection, sends each line that it reads, and prints what comes back.
"""

import asyncio
import contextlib
import ssl
import sys

import websockets

HOST = "ws.example.com"
LIMIT = 20  # seconds that a word may take
SIZE = 2 << 20


async def answer(socket, path):
    if path == "/client":
        await socket.send(socket.request_headers.get("X-Forwarded-For", ""))
    elif path == "/close":
        await socket.close(4001, "enough")
    elif path == "/ping":
        await asyncio.wait_for(await socket.ping(b"server"), LIMIT)
        await socket.send("pong came")
    with contextlib.suppress(websockets.ConnectionClosed):
        async for message in socket:
            await socket.send(message)


async def serve(port):
    more = {"max_size": SIZE, "subprotocols": ["chat"], "ping_interval": None}
    async with websockets.serve(answer, "0.0.0.0", port, **more):
        await asyncio.Future()


def connect(address, ca, path, **more):
    context = ssl.create_default_context(cafile=ca)
    more |= {"host": address, "port": 443, "ssl": context, "server_hostname": HOST}
    more |= {"max_size": SIZE, "ping_interval": None, "open_timeout": LIMIT}
    return websockets.connect(f"wss://{HOST}{path}", **more)


async def check(address, ca, client):
    def to(path, **more):
        return connect(address, ca, path, **more)

    async with to("/", subprotocols=["other", "chat"]) as socket:
        assert socket.subprotocol == "chat"
        for message in ["a word", "", b"\0\xff", "x" * (1 << 20), bytes(1 << 20)]:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), LIMIT) == message
        await asyncio.wait_for(await socket.ping(b"client"), LIMIT)
        await socket.close(4000, "goodbye")
    # The server's word for it: it says the same.
    assert (socket.close_code, socket.close_reason) == (4000, "goodbye")
    async with to("/", compression=None) as socket:
        await socket.send(["in ", "three ", "frames"])
        assert await asyncio.wait_for(socket.recv(), LIMIT) == "in three frames"
    async with to("/client") as socket:
        told = await asyncio.wait_for(socket.recv(), LIMIT)
        assert told == client, told
    async with to("/ping") as socket:
        assert await asyncio.wait_for(socket.recv(), LIMIT) == "pong came"
    async with to("/close") as socket:
        await asyncio.wait_for(socket.wait_closed(), LIMIT)
    assert (socket.close_code, socket.close_reason) == (4001, "enough")
    # A message that is more than the server takes: its own reason comes through.
    async with to("/") as socket:
        await socket.send(bytes(SIZE + 1))
        await asyncio.wait_for(socket.wait_closed(), LIMIT)
    assert socket.close_code == 1009, socket.close_code


async def stay(address, ca):
    async with connect(address, ca, "/") as socket:
        print("open", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await socket.send(line.strip())
            print(await asyncio.wait_for(socket.recv(), LIMIT), flush=True)
        await socket.close(4002, "done")
    print(socket.close_code, socket.close_reason)


verb, *rest = sys.argv[1:]
asyncio.run({"serve": serve, "check": check, "stay": stay}[verb](*rest))
