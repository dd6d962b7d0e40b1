"""A local service with Python's own HTTP server. Prints its port."""

import hashlib
import http.server
import json
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                if size == 0:
                    while self.rfile.readline().strip():
                        pass
                    return b"".join(parts)
                parts.append(self.rfile.read(size))
                self.rfile.readline()
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        body = self.body()
        path = self.path.split("?")[0]
        number = path.rsplit("/", 1)[-1]
        if path.startswith("/bytes/"):
            size = int(number)
            self.send(200, bytes(n % 251 for n in range(251)) * (size // 251) + b"x" * (size % 251))
        elif path.startswith("/status/"):
            if number in ("204", "304"):
                self.send_response(int(number))
                self.end_headers()
            else:
                self.send(int(number), b"status " + number.encode())
        elif path == "/redirect":
            self.send(302, b"", [("Location", "/echo?from=redirect")])
        elif path == "/cookies":
            self.send(200, b"crumbs", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        elif path.startswith("/chunks/"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(int(number)):
                self.wfile.write(b"8\r\nchunk %d\n\r\n" % (n % 10))
            self.wfile.write(b"0\r\n\r\n")
        elif path == "/close":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"until the end")
            self.close_connection = True
        else:
            echo = {
                "method": self.command,
                "target": self.path,
                "headers": [[name.lower(), value] for name, value in self.headers.items()],
                "length": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
            self.send(200, json.dumps(echo).encode(), [("Content-Type", "application/json")])

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = answer

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request, client_address):
        pass


server = Server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
