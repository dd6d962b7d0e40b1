"""What both strict servers share: REST, visitors by host name, accounts and names that survive a restart, and violations.

A violation of the published protocol ends the process with code 3 at once, so that no test can pass over it."""

import argparse
import asyncio
import json
import os
import re
import signal
import sys

from aiohttp import web
from multidict import CIMultiDict

DOMAIN = "tunnel.test"
HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
WRONG_TOKEN = "wrong"


def violation(text):
    print(f"VIOLATION: {text}", file=sys.stderr, flush=True)
    os._exit(3)


def require(condition, text):
    if not condition:
        violation(text)


def exact(message, **fields):
    """The message has these fields and no others, each of its exact type; a list means any of them, None optional."""
    for name, kind in fields.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if name not in message:
            require(None in kinds, f"{message.get('Type')} without {name}: {message}")
            continue
        allowed = [kind for kind in kinds if kind is not None]
        require(type(message[name]) in allowed, f"{name} of {message.get('Type')} is {type(message[name])}: {message}")
    for name in message:
        require(name in fields or name == "Type", f"unknown field {name} of {message.get('Type')}")


class Strict:
    """One server. Subclasses add the control endpoint and carry visitors' requests."""

    def __init__(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--port", type=int, default=0)
        parser.add_argument("--state")
        parser.add_argument("--version", type=int, default=2)
        parser.add_argument("--ignore-hostnames", action="store_true")
        parser.add_argument("--evict", action="store_true")
        self.args = parser.parse_args()
        self.port = self.args.port
        self.state = {"tokens": 0, "names": {}}
        if self.args.state and os.path.exists(self.args.state):
            with open(self.args.state) as file:
                self.state = json.load(file)
        self.tunnels = {}

    def save(self):
        if self.args.state:
            with open(self.args.state + ".new", "w") as file:
                json.dump(self.state, file)
            os.replace(self.args.state + ".new", self.args.state)

    def is_token(self, token):
        return re.fullmatch(r"tok_\d+", token or "") is not None

    def claim(self, name, token):
        """Gives a name, random when none is wanted; None if it belongs to another account."""
        if not name:
            name = f"name-{len(self.state['names'])}-{os.urandom(4).hex()}"
        if self.state["names"].setdefault(name, token) != token:
            return None
        self.save()
        return name

    def url(self, name):
        return f"http://{name}.{DOMAIN}:{self.port}"

    async def register(self, request):
        require(request.content_type == "application/json", "register without JSON")
        body = await request.json()
        require(set(body) == {"email"}, f"register with {set(body)}")
        require(re.fullmatch(r"[^@\s]+@[^@\s]+", body["email"]), f"register with email {body['email']}")
        self.state["tokens"] += 1
        self.save()
        return web.json_response({"auth_token": f"tok_{self.state['tokens']}"}, status=201)

    async def handle(self, request):
        host = request.host.split(":")[0].lower()
        if host.endswith("." + DOMAIN):
            name = host[: -len(DOMAIN) - 1]
            tunnel = self.tunnels.get(name)
            if tunnel is None:
                return web.Response(status=404, text="no such tunnel")
            return await self.visit(request, tunnel)
        routes = {
            ("POST", "/api/v1/auth/register"): self.register,
            ("GET", "/api/v1/ws/tunnel"): self.control,
            ("GET", "/api/v1/ws/proxy"): self.proxy,
        }
        route = routes.get((request.method, request.path))
        # What is native is unknown here.
        return await route(request) if route else web.Response(status=404, text="not found")

    async def proxy(self, request):
        return web.Response(status=404)

    async def run(self):
        # Requests are read as they are written; nothing is decompressed or limited on the way.
        server = web.Server(self.handle, auto_decompress=False)
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True, backlog=512)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        print(self.port, flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        os._exit(0)


def visitor_headers(request):
    """The visitor's headers as pairs, without what concerns one connection, and with what a server adds."""
    named = {part.strip().lower() for part in request.headers.get("Connection", "").split(",")}
    pairs = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in request.raw_headers
        if name.decode("latin-1").lower() not in HOP | named
    ]
    return pairs + [("X-Forwarded-For", request.remote)]


def check_answer(method, status, pairs, length):
    """An answer's head as a server may rely on it. `length` is None where the body is not known yet."""
    require(type(status) is int and 200 <= status <= 599, f"status {status!r}")
    for name, value in pairs:
        require(type(name) is str and type(value) is str, f"header {name!r}: {value!r}")
        require(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name), f"header name {name!r}")
        require("\r" not in value and "\n" not in value, f"header value {value!r}")
        require(name.lower() not in HOP, f"{name} concerns one connection only")
    lengths = [value for name, value in pairs if name.lower() == "content-length"]
    require(len(lengths) <= 1, "two lengths")
    if lengths:
        require(lengths[0].isdigit(), f"length {lengths[0]!r}")
    if method == "HEAD" or status in (204, 304):
        require(not length, "a body where there must be none")
    elif lengths and length is not None:
        require(int(lengths[0]) == length, f"length {lengths[0]} of {length} bytes")


def answer(request, status, pairs, body):
    """A whole answer for the visitor."""
    headers = CIMultiDict()
    for name, value in pairs:
        if name.lower() != "content-length" or request.method == "HEAD":
            headers.add(name, value)
    response = web.Response(status=status, headers=headers, body=body or None)
    return response


def unauthorized(request, auth):
    """Whether the visitor did not give the tunnel's password."""
    import base64

    expected = "Basic " + base64.b64encode(auth.encode()).decode()
    return request.headers.get("Authorization") != expected
