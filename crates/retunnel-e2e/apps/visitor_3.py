"""A visitor of a published client 3.x whose local service is service_3.py: checks everything that its user relies on.

Arguments: port of the server, host of the tunnel, wire version (1 or 2). Ends with a traceback at the first thing that is
not as it must be.
"""

import asyncio
import hashlib
import json
import multiprocessing
import sys

import aiohttp

PATIENCE = 30
BURST = 600
MEGABYTE = 1_000_000


def spin():
    while True:
        pass


class Visitor:
    def __init__(self, session, port, host, version):
        self.session = session
        self.base = f"http://127.0.0.1:{port}"
        self.host = host
        self.is_first = version == 1

    def request(self, method, path, headers=None, **more):
        headers = {"Host": self.host, **(headers or {})}
        return self.session.request(method, self.base + path, headers=headers, allow_redirects=False, **more)

    async def get(self, path, **more):
        async with self.request("GET", path, **more) as answer:
            return answer.status, answer.headers, await answer.read()

    def socket(self, path, **more):
        return self.session.ws_connect(self.base + path, headers={"Host": self.host}, max_msg_size=0, **more)

    async def requests(self):
        status, _, body = await self.get("/echo?x=a+b&y")
        echo = json.loads(body)
        assert (status, echo["method"], echo["target"]) == (200, "GET", "/echo?x=a+b&y"), echo
        names = [name for name, _ in echo["headers"]]
        assert names.count("host") == 1 and dict(echo["headers"])["host"] == self.host, echo
        assert not {":method", "method", "transfer-encoding"} & set(names), echo
        async with self.request("GET", "/echo", headers={"Authorization": "Basic bWU6c2VjcmV0"}) as answer:
            assert ["authorization", "Basic bWU6c2VjcmV0"] in (await answer.json())["headers"]
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            async with self.request(method, "/echo") as answer:
                assert (await answer.json())["method"] == method
        for path in ("/status/404", "/status/500", "/status/503"):
            status, _, body = await self.get(path)
            assert (status, body.decode()) == (int(path[-3:]), f"status {path[-3:]}")
        for path in ("/status/204", "/status/304"):
            status, _, body = await self.get(path)
            assert (status, body) == (int(path[-3:]), b"")
        async with self.request("HEAD", "/bytes/1000") as answer:
            assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, "1000", b"")
        status, headers, _ = await self.get("/redirect")
        assert (status, headers["Location"]) == (302, "/echo?from=redirect")
        _, headers, body = await self.get("/cookies")
        # 3.0.x passes the first of a name on.
        cookies = ["a=1"] if self.is_first else ["a=1", "b=2"]
        assert (headers.getall("Set-Cookie"), body) == (cookies, b"crumbs")

    async def bodies(self):
        large = 900_000 if self.is_first else 5_000_000
        for size in (0, 1, 1000, 65_536, 65_537, large):
            body = bytes(n % 251 for n in range(251)) * (size // 251) + b"x" * (size % 251)
            digest = hashlib.sha256(body).hexdigest()

            async def pieces():
                for at in range(0, len(body), 100_000):
                    yield body[at : at + 100_000]

            for data in (body, pieces()):
                async with self.request("POST", "/echo", data=data) as answer:
                    echo = await answer.json()
                    assert (answer.status, echo["length"], echo["sha256"]) == (200, size, digest), (size, echo)
        status, headers, body = await self.get("/bytes/5000000")
        assert (status, len(body), headers["Content-Length"]) == (200, 5_000_000, "5000000")
        assert body == b"0123456789" * 500_000
        _, headers, body = await self.get("/stream/1000")
        assert body == b"".join(b"chunk %d\n" % number for number in range(1000))
        assert headers["Transfer-Encoding"] == "chunked"
        too_large = 2_000_000 if self.is_first else 11_000_000
        async with self.request("POST", "/echo", data=b"x" * too_large) as answer:
            assert (answer.status, answer.headers["X-Retunnel-Error"]) == (413, "request_too_large")

    async def failures(self):
        try:
            status, _, body = await self.get("/cut")
            raise AssertionError(f"a cut answer looks complete: {status} {body}")
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, aiohttp.ServerDisconnectedError):
            pass

    async def many_at_a_time(self):
        answers = await asyncio.gather(*(self.get(f"/echo/{n}") for n in range(50)))
        assert [json.loads(body)["target"] for _, _, body in answers] == [f"/echo/{n}" for n in range(50)]

    async def events(self):
        async with self.request("GET", "/events", timeout=aiohttp.ClientTimeout(total=None)) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            for number in range(5):
                async with self.request("POST", "/emit", json=number) as emitted:
                    assert emitted.status == 200
                # Only this event was sent so far: it comes before the next one exists.
                assert await answer.content.readuntil(b"\n\n") == f"data: {number}\n\n".encode()
            async with self.request("POST", "/emit", json="end"):
                pass
            assert await answer.content.read() == b""

    async def messages(self):
        async with self.socket("/ws") as socket:
            for message in ("gr\u00fc\u00df dich \U0001f600", "", "x" * 200_000):
                await socket.send_str(message)
                assert await socket.receive_str() == message
            for message in (b"\x00\xff", b"", bytes(MEGABYTE)):
                await socket.send_bytes(message)
                assert await socket.receive_bytes() == message
            await socket.close(code=4002, message=b"bye")
        _, _, code = await self.get("/ws/close")
        assert json.loads(code) == 4002, code

    async def burst(self):
        loads = [multiprocessing.Process(target=spin, daemon=True) for _ in range(multiprocessing.cpu_count() * 2)]
        for load in loads:
            load.start()
        try:
            async with self.socket("/ws") as socket:
                sending = asyncio.ensure_future(self.send_all(socket))
                for number in range(BURST):
                    message = await socket.receive()
                    assert message.data == f"{number:04} " + "x" * 200, (number, message)
                await sending
        finally:
            for load in loads:
                load.kill()

    async def send_all(self, socket):
        for number in range(BURST):
            await socket.send_str(f"{number:04} " + "x" * 200)

    async def handshakes(self):
        async with self.socket("/ws", protocols=("other", "chat")) as socket:
            # Version 1 does not tell which one the service chose.
            assert socket.protocol == (None if self.is_first else "chat")
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
            await socket.send_str("close 4001 enough")
            message = await socket.receive()
            assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "enough"), message
        try:
            async with self.socket("/ws/refuse"):
                raise AssertionError("a refused WebSocket was accepted")
        except aiohttp.WSServerHandshakeError as refused:
            assert refused.status == 403, refused

    async def run(self):
        for check in (
            self.requests, self.bodies, self.failures, self.many_at_a_time, self.events, self.messages, self.handshakes,
            self.burst,
        ):
            await asyncio.wait_for(check(), PATIENCE)
            print(check.__name__, flush=True)


async def main():
    port, host, version = sys.argv[1:4]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        await Visitor(session, int(port), host, int(version)).run()


asyncio.run(main())
