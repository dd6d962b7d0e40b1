"""A server that knows dialect 2 only, written from the protocol's description and strict about it. Prints its port."""

import asyncio
import re
import struct
import time

import msgpack
from aiohttp import WSMsgType, web

from strict import Strict, answer, check_answer, exact, require, unauthorized, violation, visitor_headers

ID = "[a-km-z2-9]"


def pack(message):
    data = msgpack.packb(message, use_bin_type=True)
    return struct.pack(">Q", len(data)) + data


def unpack(message):
    require(message.type == WSMsgType.BINARY, f"a {message.type} message")
    require(len(message.data) > 8, "a message without a length")
    (length,) = struct.unpack(">Q", message.data[:8])
    require(length == len(message.data) - 8, f"length {length} of {len(message.data) - 8} bytes")
    value = msgpack.unpackb(message.data[8:], raw=False, strict_map_key=True)
    require(type(value) is dict and type(value.get("Type")) is str, f"not a message: {value}")
    return value


class Session:
    def __init__(self, socket, token, client_id):
        self.socket, self.token, self.client_id = socket, token, client_id
        self.waiting = []  # visitors without a data socket, oldest first
        self.asked = 0
        self.pinged = None
        self.expected_pongs = []
        self.beats = {}
        self.names = []

    async def send(self, **message):
        await self.socket.send_bytes(pack(message))


class Server(Strict):
    def __init__(self):
        super().__init__()
        self.sessions = {}

    async def control(self, request):
        socket = web.WebSocketResponse(max_msg_size=64 * 1024, heartbeat=10)
        await socket.prepare(request)
        first = await socket.receive(timeout=10)
        if first.type == WSMsgType.CLOSE:
            # A probe whether a session can be opened.
            return socket
        if first.type == WSMsgType.BINARY and first.data and 0x80 <= first.data[0] <= 0x8F:
            # What a client that tries 3.x sends; it gets no answer here.
            require(msgpack.unpackb(first.data).get("version") == 2, f"neither 2.x nor 3.x: {first.data[:80]}")
            await socket.close()
            return socket
        auth = unpack(first)
        require(auth["Type"] == "Auth", f"{auth['Type']} before Auth")
        fields = ("ClientId", "OS", "Arch", "Version", "MmVersion", "User", "Password")
        exact(auth, **{name: str for name in fields})
        require(re.fullmatch(f"client-{ID}{{12}}", auth["ClientId"]), f"ClientId {auth['ClientId']}")
        require(auth["Version"] == "2.3.40" and auth["MmVersion"] == "2.3", f"versions of {auth}")
        require(auth["OS"] == auth["OS"].lower() and auth["OS"] and auth["Arch"], f"{auth}")
        header = request.headers.get("Authorization")
        # A client that does not know this server yet shows its token only after the handshake.
        require(header in (None, f"Bearer {auth['User']}"), "Authorization and User differ")
        answer = {"Type": "AuthResp", "Version": "2.3.40", "MmVersion": "2.3"}
        if not self.is_token(auth["User"]):
            await socket.send_bytes(pack({**answer, "ClientId": "", "Error": "Invalid auth token"}))
            await socket.close()
            return socket
        session = Session(socket, auth["User"], f"srv-{len(self.sessions)}-{time.time_ns()}")
        self.sessions[session.client_id] = session
        await socket.send_bytes(pack({**answer, "ClientId": session.client_id, "Error": ""}))
        async for message in socket:
            await self.message(session, unpack(message))
        for expected in session.expected_pongs:
            expected.cancel()
        for name in session.names:
            if self.tunnels.get(name, {}).get("session") is session:
                del self.tunnels[name]
        for visitor in session.waiting:
            if not visitor.done():
                visitor.set_result(None)
        return socket

    async def message(self, session, message):
        now = time.monotonic()
        kind = message["Type"]
        if kind == "ReqTunnel":
            texts = ("ReqId", "Protocol", "Hostname", "Subdomain", "HttpAuth")
            exact(message, RemotePort=int, **{name: str for name in texts})
            require(re.fullmatch(f"req-{ID}{{8}}", message["ReqId"]), f"ReqId {message['ReqId']}")
            require(message["Protocol"] == "http", f"{message['Protocol']} cannot be carried")
            await self.open(session, message)
        elif kind == "Ping":
            exact(message)
            require(session.pinged is None or now - session.pinged > 10, "Ping too often")
            session.pinged = now
            await session.send(Type="Pong")
        elif kind == "Pong":
            exact(message)
            require(session.expected_pongs, "Pong without Ping")
            session.expected_pongs.pop(0).cancel()
        elif kind == "Heartbeat":
            exact(message, Subdomain=str, Timestamp=float)
            require(message["Subdomain"] in session.names, f"Heartbeat of {message['Subdomain']}")
            require(now - session.beats.get(message["Subdomain"], 0) > 20, "Heartbeat too often")
            session.beats[message["Subdomain"]] = now
        else:
            violation(f"unexpected {kind} on the control socket")

    async def open(self, session, message):
        name = self.claim(message["Subdomain"].lower(), session.token)
        if name is None:
            code, text = "SUBDOMAIN_TAKEN", "that name belongs to another account [name_unavailable]"
            spelled = {"error_code": code, "message": text, "ErrorCode": code, "Message": text}
            await session.send(Type="ErrorResp", ReqId=message["ReqId"], **spelled)
            return
        session.names.append(name)
        self.tunnels[name] = {"name": name, "session": session, "auth": message["HttpAuth"]}
        named = {"Url": self.url(name), "Protocol": "http", "Subdomain": name, "TunnelId": name}
        await session.send(Type="NewTunnel", ReqId=message["ReqId"], Error="", Extra=1, **named)
        # Unknown messages are ignored, and a Ping is answered.
        await session.send(Type="Unheard", Of=1)
        session.expected_pongs.append(asyncio.get_running_loop().call_later(5, violation, "no Pong"))
        await session.send(Type="Ping")

    async def visit(self, request, tunnel):
        session = tunnel["session"]
        if tunnel["auth"] and unauthorized(request, tunnel["auth"]):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="strict"'})
        body = await request.content.read()
        path, _, query = request.raw_path.partition("?")
        headers = {}
        for name, value in visitor_headers(request):
            if name.lower() != "content-length":
                known = next((known for known in headers if known.lower() == name.lower()), None)
                joined = f"{headers[known]}, {value}" if known else value
                headers[known or name] = joined
        if "Upgrade" in request.headers:
            headers["Upgrade"] = request.headers["Upgrade"]
        headers["Connection"] = "close"
        if body or request.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(body))
        data = {"method": request.method, "path": path, "query": query, "headers": headers, "body": body}
        waiter = asyncio.get_running_loop().create_future()
        session.waiting.append(waiter)
        session.asked += 1
        await session.send(Type="ReqProxy")
        socket = await asyncio.wait_for(waiter, 20)
        if socket is None:
            return web.Response(status=502, text="the session ended")
        try:
            response = await asyncio.wait_for(self.exchange(socket, session, tunnel, data), 20)
        finally:
            socket.done.set()
        if response is None:
            return web.Response(status=502, text="closed without an answer")
        pairs = list(response["headers"].items())
        check_answer(request.method, response["status"], pairs, len(response["body"]))
        return answer(request, response["status"], pairs, response["body"])

    async def exchange(self, socket, session, tunnel, request):
        # The public address and nothing else: `app` occurs in the address of `app2` as well.
        start = {"Type": "StartProxy", "Url": self.url(tunnel["name"]), "ClientAddr": "127.0.0.9:1", "RequestId": "r1"}
        await socket.send_bytes(pack(start))
        await socket.send_bytes(pack({"Type": "Proxy", "data": msgpack.packb(request, use_bin_type=True)}))
        message = await socket.receive()
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            return None
        message = unpack(message)
        require(message["Type"] == "Proxy", f"{message['Type']} on a data socket")
        exact(message, data=bytes)
        response = msgpack.unpackb(message["data"], raw=False, strict_map_key=True)
        exact(response, status=int, headers=dict, body=bytes)
        return response

    async def proxy(self, request):
        socket = web.WebSocketResponse(max_msg_size=64 * 1024 * 1024, heartbeat=10)
        await socket.prepare(request)
        register = unpack(await socket.receive(timeout=10))
        require(register["Type"] == "RegProxy", f"{register['Type']} before RegProxy")
        exact(register, ClientId=str)
        session = self.sessions.get(register["ClientId"])
        require(session is not None, f"RegProxy with the id {register['ClientId']}")
        require(request.headers.get("Authorization") == f"Bearer {session.token}", "a data socket of another account")
        session.asked -= 1
        require(session.asked >= 0, "an unrequested data socket")
        socket.done = asyncio.Event()
        session.waiting = [visitor for visitor in session.waiting if not visitor.done()]
        if not session.waiting:
            await socket.close()
            return socket
        session.waiting.pop(0).set_result(socket)
        await socket.done.wait()
        await socket.close()
        return socket


asyncio.run(Server().run())
