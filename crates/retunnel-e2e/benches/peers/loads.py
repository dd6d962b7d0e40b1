"""What visitors do, and the origin they reach. All of it runs on this machine, over loopback."""

import os
import re
import select
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from contenders import free_port, listens, wait_until

CHUNK = 1 << 20


class Origin:
    """The local services: nginx for HTTP, a source and sink for bytes."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="bench-origin-")
        self.http = free_port()
        root = Path(self.dir.name)
        with open(root / "1g", "wb") as big:
            big.truncate(1 << 30)
        for name, size in (("1k", 1024), ("16k", 16384), ("100k", 102400), ("256k", 262144)):
            (root / name).write_bytes(b"x" * size)
        (root / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {root}/pid; error_log stderr crit;
events {{ worker_connections 19000; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 100000000; keepalive_timeout 1h; tcp_nodelay on;
  client_body_temp_path {root}/body; open_file_cache max=100; client_body_buffer_size 64k; sendfile on;
  server {{ listen 127.0.0.1:{self.http} backlog=4096; root {root};
    location = / {{ return 200 "{'x' * 1024}"; }}
    location = /post {{ return 200 "ok"; }}
  }}
}}
""")
        os.chmod(root, 0o755)
        self.nginx = subprocess.Popen(
            ["nginx", "-c", root / "nginx.conf", "-p", root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until("the origin listens", lambda: listens(self.http))
        self.bulk = ByteService()

    def stop(self):
        # Killed, it would leave its workers behind.
        self.nginx.terminate()
        self.nginx.wait()
        self.bulk.process.kill()
        self.dir.cleanup()


class ByteService:
    """A TCP service in a process of its own. First byte D: it sends until the visitor goes. U: it counts until the
    visitor half-closes, then says how many bytes came. H: it sends nothing and keeps the connection."""

    def __init__(self):
        self.port = free_port()
        self.process = subprocess.Popen(["python3", __file__, "serve", str(self.port)], stdout=subprocess.DEVNULL)
        wait_until("the byte service listens", lambda: listens(self.port))

    @staticmethod
    def serve(port):
        with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=ByteService.one, args=(connection,), daemon=True).start()

    @staticmethod
    def one(connection):
        buffer = memoryview(bytearray(CHUNK))
        try:
            with connection:
                first = connection.recv(1)
                if first == b"D":
                    while True:
                        connection.sendall(buffer)
                elif first == b"U":
                    count = 0
                    while received := connection.recv_into(buffer):
                        count += received
                    connection.sendall(b"%d" % count)
                elif first == b"P":
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65536)
                    head, _, body = head.partition(b"\r\n\r\n")
                    left = int(re.search(rb"(?i)content-length: *(\d+)", head)[1]) - len(body)
                    while left > 0 and (received := connection.recv_into(buffer)):
                        left -= received
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        except OSError:
            pass


def wrk(contender, connections, seconds, path="/", close=False, script=None):
    """Requests per second, latencies in ms and CPU seconds per 100k requests of a closed loop."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Host: {contender.host}"]
    if close:
        command += ["-H", "Connection: close"]
    if script:
        command += ["-s", script]
    before = contender.cpu()
    text = subprocess.run([*command, f"{contender.visitors}://127.0.0.1:{contender.port}{path}"], capture_output=True, text=True, check=True).stdout
    used = contender.cpu() - before
    requests = int(re.search(r"(\d+) requests in", text)[1])
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        "p50": milliseconds(re.search(r"50%\s+([\d.]+\w+)", text)[1]),
        "p99": milliseconds(re.search(r"99%\s+([\d.]+\w+)", text)[1]),
        "cpu": used / requests * 1e5,
        "requests": requests,
        "errors": (sum(map(int, errors.groups())) if errors else 0) + (int(refused[1]) if refused else 0),
    }


def milliseconds(text):
    number, unit = re.match(r"([\d.]+)(\w+)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def bulk(contender, streams, direction, seconds):
    """MiB/s over all streams and CPU seconds per GiB. `direction` is D (to the visitor) or U."""
    stop, moved = threading.Event(), [0] * streams

    def run(n):
        buffer = memoryview(bytearray(CHUNK))
        with socket.create_connection(("127.0.0.1", contender.port)) as visitor:
            visitor.sendall(direction.encode())
            while not stop.is_set():
                moved[n] += visitor.recv_into(buffer) if direction == "D" else visitor.send(buffer)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(streams)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    before, cpu, started = sum(moved), contender.cpu(), time.monotonic()
    time.sleep(seconds)
    count, used, elapsed = sum(moved) - before, contender.cpu() - cpu, time.monotonic() - started
    stop.set()
    for thread in threads:
        thread.join(10)
    return {"mib": count / elapsed / (1 << 20), "cpu": used / count * (1 << 30)}


def http_bulk(contender, direction):
    """One body of 1 GiB through an HTTP tunnel."""
    buffer, size = memoryview(bytearray(CHUNK)), 1 << 30
    with socket.create_connection(("127.0.0.1", contender.port)) as visitor:
        before, started = contender.cpu(), time.monotonic()
        if direction == "D":
            visitor.sendall(f"GET /1g HTTP/1.1\r\nHost: {contender.host}\r\nConnection: close\r\n\r\n".encode())
            count = 0
            while received := visitor.recv_into(buffer):
                count += received
            assert count > size, f"{count} bytes"
        else:
            visitor.sendall(f"POST /post HTTP/1.1\r\nHost: {contender.host}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode())
            for _ in range(size // CHUNK):
                visitor.sendall(buffer)
            answer = visitor.recv(100)
            assert answer.startswith(b"HTTP/1.1 200"), answer
        elapsed = time.monotonic() - started
        return {"mib": 1024 / elapsed, "cpu": contender.cpu() - before}


class Background:
    """Downloads through the contender's second tunnel, beside which others are measured. `rate` in bytes/s limits them; 0
    reads nothing at all."""

    def __init__(self, contender, streams=1, rate=None):
        self.stop = threading.Event()
        self.count = 0
        self.threads = [threading.Thread(target=self.run, args=(contender, rate)) for _ in range(streams)]
        for thread in self.threads:
            thread.start()
        time.sleep(0.5)

    def run(self, contender, rate):
        buffer = memoryview(bytearray(256 * 1024))
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", contender.bulk_port)) as visitor:
            visitor.sendall(b"D")
            if rate == 0:
                self.stop.wait()
                return
            while not self.stop.is_set() and (received := visitor.recv_into(buffer)):
                self.count += received
                if rate and (ahead := self.count / rate - (time.monotonic() - started)) > 0:
                    self.stop.wait(ahead)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(10)


class Idle:
    """Keep-alive visitors that made one request and wait."""

    def __init__(self, contender, count):
        self.sockets = []
        request = f"GET / HTTP/1.1\r\nHost: {contender.host}\r\n\r\n".encode()
        for start in range(0, count, 200):
            batch = [socket.create_connection(("127.0.0.1", contender.port), timeout=20) for _ in range(start, min(count, start + 200))]
            for visitor in batch:
                visitor.sendall(request)
            for visitor in batch:
                received = 0
                while received < 1024:
                    piece = visitor.recv(4096)
                    assert piece, "closed"
                    received += len(piece)
            self.sockets += batch

    def end(self):
        for visitor in self.sockets:
            visitor.close()


def first_answer(contender, deadline=10):
    """Seconds until the first 200 arrives; visitors try without a pause."""
    started = time.monotonic()
    request = f"GET / HTTP/1.1\r\nHost: {contender.host}\r\nConnection: close\r\n\r\n".encode()
    while time.monotonic() - started < deadline:
        try:
            with socket.create_connection(("127.0.0.1", contender.port), timeout=2) as visitor:
                visitor.sendall(request)
                if visitor.recv(15).startswith(b"HTTP/1.1 200"):
                    return time.monotonic() - started
        except OSError:
            pass
        time.sleep(0.0005)
    raise RuntimeError("no answer")


def median(values):
    return statistics.median(values)


if __name__ == "__main__":
    import sys

    ByteService.serve(int(sys.argv[2]))
