"""A server that knows dialect 3 only, both wire versions, strict about it. Prints its port. `--version 1` speaks the first."""

import asyncio

import msgpack
from aiohttp import WSMsgType, web

from strict import Strict, check_answer, exact, require, violation, visitor_headers

CHUNK = 64 * 1024
CREDIT = 100


class Broken(Exception):
    """A stream was reset."""


class Stream:
    """One visitor. The code that serves it checks the order of messages."""

    def __init__(self, session, stream_id):
        self.session, self.id = session, stream_id
        self.frames = asyncio.Queue()
        self.over = False
        self.sent = 0

    async def send(self, **message):
        await self.session.send(stream_id=self.id, **message)
        self.sent += 1
        if self.sent % CREDIT == 0:
            await self.session.heartbeat()

    async def next(self, *kinds):
        message = await self.frames.get()
        if message is None:
            raise Broken("the session ended")
        if message["Type"] == "StreamReset":
            raise Broken(message["reason"])
        require(message["Type"] in kinds, f"{message['Type']} where {kinds} is due")
        return message

    async def message(self):
        """The next message, put together."""
        parts = []
        while True:
            frame = await self.next("StreamData", "StreamClose")
            if frame["Type"] == "StreamClose":
                require(not parts, "StreamClose within a message")
                return None, frame
            if self.session.version == 1:
                require("fin" not in frame, "fin in version 1")
                return frame["data"], frame
            require("fin" in frame, "a message without fin")
            parts.append(frame["data"])
            if frame["fin"]:
                return b"".join(parts), frame
            require(len(frame["data"]) == CHUNK, "a chunk in the middle is not full")

    async def close(self, **fields):
        if not self.over:
            self.over = True
            await self.session.send(Type="StreamClose", stream_id=self.id, **fields)


class Session:
    def __init__(self, socket, token, version):
        self.socket, self.token, self.version = socket, token, version
        self.streams = {}
        self.count = 0
        self.names = []
        self.listeners = []
        self.acks = []

    async def send(self, **message):
        await self.socket.send_bytes(msgpack.packb(message, use_bin_type=True))

    async def heartbeat(self):
        ack = asyncio.get_running_loop().create_future()
        self.acks.append(ack)
        await self.send(Type="Heartbeat")
        try:
            await asyncio.wait_for(ack, 10)
        except asyncio.TimeoutError:
            violation("no HeartbeatAck")

    async def open(self, **fields):
        stream = Stream(self, self.count)
        self.count += 1
        self.streams[stream.id] = stream
        await self.send(Type="StreamOpen", stream_id=stream.id, **fields)
        return stream


class Server(Strict):
    def unpack(self, message):
        require(message.type == WSMsgType.BINARY, f"a {message.type} message")
        require(message.data and (0x80 <= message.data[0] <= 0x8F or message.data[0] >= 0xDE), "not a map: a length?")
        value = msgpack.unpackb(message.data, raw=False, strict_map_key=True)
        require(type(value) is dict and type(value.get("Type")) is str, f"not a message: {value}")
        return value

    async def control(self, request):
        require("Authorization" not in request.headers, "Authorization in the handshake")
        socket = web.WebSocketResponse(max_msg_size=32 * 1024 * 1024, heartbeat=10)
        await socket.prepare(request)
        first = await socket.receive(timeout=10)
        if first.type == WSMsgType.CLOSE:
            # A probe whether a session can be opened.
            return socket
        auth = self.unpack(first)
        if auth["Type"] == "Auth" and "User" in auth:
            # What a client that tries 2.x sends; it gets no answer here.
            await socket.close()
            return socket
        require(auth["Type"] == "Auth", f"{auth['Type']} before Auth")
        exact(auth, token=str, version=(int, None))
        require(auth.get("version") == 2, f"version {auth.get('version')}")
        session = Session(socket, auth["token"], self.args.version)
        if not self.is_token(session.token):
            await session.send(Type="Error", code="UNAUTHORIZED", message="that token is not known")
            await socket.close()
            return socket
        version = {"version": 2} if session.version == 2 else {}
        await session.send(Type="HeartbeatAck", **version)
        try:
            async for message in socket:
                await self.message(session, self.unpack(message))
        finally:
            for name in session.names:
                if self.tunnels.get(name, {}).get("session") is session:
                    del self.tunnels[name]
            for listener in session.listeners:
                listener.close()
            for stream in session.streams.values():
                stream.frames.put_nowait(None)
        return socket

    async def message(self, session, message):
        kind = message["Type"]
        if kind == "TunnelCreate":
            optional = {"subdomain": (str, None), "path": (str, None), "remote_port": (int, None)}
            exact(message, protocol=str, hostname=(str, None), **optional)
            await self.create(session, message)
        elif kind == "HeartbeatAck":
            exact(message)
            require(session.acks, "HeartbeatAck without Heartbeat")
            session.acks.pop(0).set_result(None)
        elif kind in ("StreamData", "StreamClose", "StreamReset"):
            if kind == "StreamData":
                exact(message, stream_id=int, data=bytes, ws_type=(str, None), fin=(bool, None))
                require(message.get("ws_type") in (None, "text", "binary"), f"ws_type {message.get('ws_type')}")
                require(session.version == 1 or len(message["data"]) <= CHUNK, f"a chunk of {len(message['data'])} bytes")
            elif kind == "StreamClose":
                exact(message, stream_id=int, code=(int, None), reason=(str, None))
            else:
                exact(message, stream_id=int, reason=str)
                require(len(message["reason"]) <= 200, "a long reason")
                print(f"reset: {message['reason']}", flush=True)
            stream = session.streams.get(message["stream_id"])
            require(stream is not None, f"{kind} of a stream that never was")
            require(not getattr(stream, "ended", False), f"{kind} after the end of its stream")
            stream.ended = kind != "StreamData"
            stream.frames.put_nowait(message)
        else:
            violation(f"unexpected {kind}")

    async def create(self, session, message):
        name = self.claim(message.get("subdomain"), session.token)
        if name is None:
            await session.send(Type="Error", code="SUBDOMAIN_UNAVAILABLE", message="that name belongs to another account")
            await session.socket.close()
            return
        older = self.tunnels.get(name, {}).get("session")
        if self.args.evict and older not in (None, session):
            await older.socket.close()
        tunnel = {"name": name, "session": session}
        session.names.append(name)
        self.tunnels[name] = tunnel
        if message["protocol"] == "tcp":
            listener = await asyncio.start_server(lambda r, w: self.connection(tunnel, r, w), "127.0.0.1", 0)
            session.listeners.append(listener)
            port = listener.sockets[0].getsockname()[1]
            await session.send(Type="TunnelCreated", url=f"tcp://tunnel.test:{port}", subdomain=name, remote_port=port)
        else:
            require(message["protocol"] == "http", f"protocol {message['protocol']}")
            host = None if self.args.ignore_hostnames else message.get("hostname")
            url = f"http://{host}" if host else self.url(name)
            await session.send(Type="TunnelCreated", url=url, subdomain=name)

    def head(self, session, method, pairs):
        if session.version == 2:
            return {"method": method, "headers": pairs}
        headers = {":method": method}
        for name, value in pairs:
            known = next((known for known in headers if known.lower() == name.lower()), None)
            headers[known or name] = f"{headers[known]}, {value}" if known else value
        return {"headers": headers}

    async def visit(self, request, tunnel):
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self.websocket(request, tunnel)
        session = tunnel["session"]
        pairs = visitor_headers(request)
        fields = {"tunnel_id": tunnel["name"], "mode": "http", "path": request.raw_path}
        fields.update(self.head(session, request.method, pairs))
        has_body = session.version == 2 and request.body_exists
        if has_body:
            stream = await session.open(has_body=True, body=b"", **fields)
            while chunk := await request.content.read(CHUNK):
                await stream.send(Type="StreamData", data=chunk, fin=False)
            await stream.send(Type="StreamData", data=b"", fin=True)
        else:
            body = await request.content.read() if request.body_exists else b""
            stream = await session.open(body=body, **fields)
        response = None
        try:
            data, _ = await stream.message()
            require(data is not None, "StreamClose before the head of the answer")
            meta = msgpack.unpackb(data, raw=False, strict_map_key=True)
            exact(meta, status=int, headers=list)
            check_answer(request.method, meta["status"], [tuple(pair) for pair in meta["headers"]], None)
            response = web.StreamResponse(status=meta["status"])
            for name, value in meta["headers"]:
                response.headers.add(name, value)
            no_body = request.method == "HEAD" or meta["status"] in (204, 304)
            length = response.headers.get("Content-Length")
            if length is None and not no_body:
                response.enable_chunked_encoding()
            await response.prepare(request)
            count = 0
            while True:
                frame = await stream.next("StreamData", "StreamClose")
                if frame["Type"] == "StreamClose":
                    break
                require(not no_body, "a body where there must be none")
                require("fin" not in frame and "ws_type" not in frame, f"a body frame with {set(frame)}")
                count += len(frame["data"])
                await response.write(frame["data"])
            require(no_body or length is None or int(length) == count, f"length {length} of {count} bytes")
            await response.write_eof()
            return response
        except Broken as reason:
            if response is None:
                return web.Response(status=502, text=str(reason))
            # What was begun must not look complete.
            request.transport.abort()
            return response
        except (ConnectionResetError, asyncio.CancelledError):
            await stream.close()
            raise

    async def websocket(self, request, tunnel):
        session = tunnel["session"]
        dropped = {"sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"}
        pairs = [(name, value) for name, value in visitor_headers(request) if name.lower() not in dropped]
        fields = {"tunnel_id": tunnel["name"], "mode": "ws", "path": request.raw_path}
        if session.version == 1:
            fields["headers"] = {name.lower() if name.lower().startswith("sec-") else name: value for name, value in pairs}
        else:
            fields.update(method="GET", headers=pairs)
        stream = await session.open(**fields)
        protocols = ()
        if session.version == 2:
            try:
                data, _ = await stream.message()
            except Broken as reason:
                return web.Response(status=502, text=str(reason))
            require(data is not None, "StreamClose before the answer to the handshake")
            meta = msgpack.unpackb(data, raw=False, strict_map_key=True)
            if meta["status"] != 101:
                exact(meta, status=int, reason=str, headers=list)
                await stream.next("StreamClose")
                headers = {name: value for name, value in meta["headers"]}
                return web.Response(status=meta["status"], reason=meta["reason"] or None, headers=headers)
            exact(meta, status=int, subprotocol=(str, type(None)))
            protocols = (meta["subprotocol"],) if meta["subprotocol"] else ()
        public = web.WebSocketResponse(protocols=protocols, max_msg_size=32 * 1024 * 1024)
        await public.prepare(request)
        down = asyncio.create_task(self.to_public(stream, public))
        async for message in public:
            text = message.type == WSMsgType.TEXT
            data = message.data.encode() if text else message.data
            kind = "text" if text else "binary"
            if session.version == 1:
                await stream.send(Type="StreamData", data=data, ws_type=kind)
                continue
            chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)] or [b""]
            for number, chunk in enumerate(chunks, 1):
                await stream.send(Type="StreamData", data=chunk, ws_type=kind, fin=number == len(chunks))
        if not getattr(stream, "ended", False):
            fields = {"code": public.close_code} if public.close_code not in (None, 1005, 1006) else {}
            await stream.close(**fields)
        down.cancel()
        return public

    async def to_public(self, stream, public):
        try:
            while True:
                data, frame = await stream.message()
                if data is None:
                    await public.close(code=frame.get("code", 1000), message=frame.get("reason", "").encode())
                    return
                require(frame.get("ws_type") in ("text", "binary"), "a message without a kind")
                await (public.send_str(data.decode()) if frame["ws_type"] == "text" else public.send_bytes(data))
        except Broken:
            await public.close(code=1011)

    async def connection(self, tunnel, reader, writer):
        stream = await tunnel["session"].open(tunnel_id=tunnel["name"], mode="tcp")

        async def up():
            while data := await reader.read(CHUNK):
                await stream.send(Type="StreamData", data=data)
            # No half-close: the answer under way goes first.
            await asyncio.sleep(1)
            await stream.close()

        upward = asyncio.create_task(up())
        try:
            while True:
                frame = await stream.next("StreamData", "StreamClose")
                if frame["Type"] == "StreamClose":
                    break
                require("ws_type" not in frame and frame.get("fin") in (None, True), f"a TCP frame with {set(frame)}")
                writer.write(frame["data"])
                await writer.drain()
            writer.close()
        except Broken:
            writer.transport.abort()
        upward.cancel()


asyncio.run(Server().run())
