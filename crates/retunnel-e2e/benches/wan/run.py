"""Compares the tunnel with a direct connection and with rathole over emulated bad networks: `make bench-wan`.

Visitors and the server are on one side of a bad link (`emulator.py`, `wan.c`: two network namespaces), the client and the
local service on the other. Root, Linux, iproute2 and a C compiler are needed. Contenders take turns over links of the same
seed; printed are medians over the rounds. Times in ms. What the rows are:

first     first byte of the answer to a new visitor, from its connect on; one visitor each 350 ms
first20   the same for 20 visitors at once, each with a new connection
100k      the whole of 100 KiB for a new visitor
kept      1 KiB requests on one kept connection
beside    the same on 3 kept connections, beside a download (`new`: with a new connection each)
bulk1, 4  Mbit/s of 1 and 4 downloads
cold      start of the client to the first answer, its account known (20 starts would take long: 3 are made)
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import emulator

ROOT = Path(__file__).resolve().parents[4]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
RETUNNEL = os.environ.get("BENCH_RETUNNEL", str(TARGET / "release" / "retunnel"))
RATHOLE = str(TARGET / "peers" / "bin" / "rathole")
SERVER, CLIENT, PORT, CONTROL, ORIGIN = emulator.S_IP, emulator.C_IP, 9080, 9070, 9000


class Tunnel:
    """One contender on its own link. `host` and `port` are where visitors go."""

    def __init__(self, name, profile, seed):
        self.name, self.dir = name, tempfile.TemporaryDirectory(prefix="bench-wan-")
        self.wan = emulator.Wan(profile, seed, tag=name[:2])
        self.host, self.port = (CLIENT, ORIGIN) if name == "direct" else (SERVER, PORT)
        self.processes = []

    def popen(self, side, *command):
        env = {key: value for key, value in os.environ.items() if not key.startswith("RETUNNEL_")}
        log = open(Path(self.dir.name) / "log", "ab")
        process = self.wan.popen(side, list(command), env={**env, "HOME": self.dir.name}, cwd=self.dir.name, stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def __enter__(self):
        self.wan.__enter__()
        self.popen("c", sys.executable, __file__, "--origin")
        if self.name == "retunnel":
            self.popen("s", RETUNNEL, "--log-level", "warn", "server", "--listen", f"{SERVER}:{PORT}", "--data-dir",
                       f"{self.dir.name}/data", "--registration", "open", "--domain", "bench.test", "--tcp-ports", "9100-9100")
        elif self.name == "rathole":
            self.write("server.toml", f'[server]\nbind_addr = "{SERVER}:{CONTROL}"\ndefault_token = "b"\n'
                       f'[server.services.b]\nbind_addr = "{SERVER}:{PORT}"\n')
            self.write("client.toml", f'[client]\nremote_addr = "{SERVER}:{CONTROL}"\ndefault_token = "b"\n'
                       f'[client.services.b]\nlocal_addr = "127.0.0.1:{ORIGIN}"\n')
            self.popen("s", RATHOLE, "--server", "server.toml")
        time.sleep(1)
        self.client = self.start_client()
        self.visit("first", count=1, timeout=30)
        return self

    def write(self, name, text):
        (Path(self.dir.name) / name).write_text(text)

    def start_client(self):
        if self.name == "retunnel":
            return self.popen("c", RETUNNEL, "--quiet", "--log-level", "warn", "http", str(ORIGIN),
                              "--server", f"http://{SERVER}:{PORT}", "--subdomain", "x", "--no-inspect")
        return self.popen("c", RATHOLE, "--client", "client.toml") if self.name == "rathole" else None

    def visit(self, row, **options):
        """Runs visitors on the server's side; gives what they print."""
        arguments = json.dumps({"row": row, "host": self.host, "port": self.port, **options})
        out = subprocess.run(["ip", "netns", "exec", self.wan.ns["s"], sys.executable, __file__, "--visit", arguments],
                             stdout=subprocess.PIPE, text=True, timeout=180, check=True).stdout
        return json.loads(out)

    def cold(self):
        times = []
        for _ in range(3 if self.client else 0):
            self.client.terminate()
            self.client.wait()
            arguments = json.dumps({"row": "arrival", "host": self.host, "port": self.port, "timeout": 30})
            visitor = self.wan.popen("s", [sys.executable, __file__, "--visit", arguments], stdout=subprocess.PIPE, text=True)
            time.sleep(1.5)
            started = time.monotonic()
            self.client = self.start_client()
            times.append((json.loads(visitor.communicate(timeout=60)[0])[0] - started) * 1000)
        return times

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.wan.close()
        self.dir.cleanup()


# --- the local service ---------------------------------------------------------------------------------------------


async def origin():
    """`/N` answers N bytes; connections are kept."""

    async def serve(reader, writer):
        writer.get_extra_info("socket").setsockopt(6, 1, 1)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.split(b" ", 2)[1][1:])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * min(size, 1 << 16))
                left = size - (1 << 16)
                while left > 0:
                    await writer.drain()
                    writer.write(b"x" * min(left, 1 << 16))
                    left -= 1 << 16
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "0.0.0.0", ORIGIN, backlog=1000) as server:
        await server.serve_forever()


# --- visitors --------------------------------------------------------------------------------------------------------


class Visitors:
    def __init__(self, row, host, port, count=20, seconds=8, timeout=10):
        self.address, self.count, self.seconds, self.timeout = (host, port), count, seconds, timeout
        self.row = row

    async def connect(self):
        reader, writer = await asyncio.open_connection(*self.address, limit=1 << 20)
        writer.get_extra_info("socket").setsockopt(6, 1, 1)
        return reader, writer

    async def get(self, connection, size):
        """First byte and whole answer."""
        reader, writer = connection
        writer.write(b"GET /%d HTTP/1.1\r\nHost: x.bench.test\r\n\r\n" % size)
        first = await reader.readexactly(1)
        at = time.monotonic()
        head = first + await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        left = size
        while left > 0:
            piece = await reader.read(1 << 16)
            assert piece, "cut"
            left -= len(piece)
        return at, time.monotonic()

    async def fresh(self, size, whole=False):
        started = time.monotonic()
        while True:
            try:
                connection = await self.connect()
                first, last = await self.get(connection, size)
                connection[1].close()
                return ((last if whole else first) - started) * 1000
            except (AssertionError, OSError, asyncio.IncompleteReadError):
                if time.monotonic() - started > self.timeout:
                    raise
                await asyncio.sleep(0.002)

    async def download(self, counter):
        connection = await self.connect()
        reader, writer = connection
        writer.write(b"GET /10000000000 HTTP/1.1\r\nHost: x.bench.test\r\n\r\n")
        try:
            while piece := await reader.read(1 << 18):
                counter[0] += len(piece)
        finally:
            writer.transport.abort()

    async def measure(self):
        if self.row == "first":
            return [await self.paced(1024, False, n) for n in range(self.count)]
        if self.row == "100k":
            return [await self.paced(102400, True, n) for n in range(self.count)]
        if self.row == "arrival":
            await self.fresh(1024)
            return [time.monotonic()]
        if self.row == "first20":
            times = []
            for _ in range(max(self.count // 4, 1)):
                times += await asyncio.gather(*(self.fresh(1024) for _ in range(20)))
                await asyncio.sleep(0.3)
            return times
        if self.row == "kept":
            return await self.kept(self.seconds)
        if self.row == "beside":
            task = asyncio.create_task(self.download([0]))
            await asyncio.sleep(3)
            kept = await asyncio.gather(*(self.kept(self.seconds) for _ in range(3)), self.news(self.seconds))
            task.cancel()
            return {"kept": sum(kept[:3], []), "new": kept[3]}
        counter = [0]
        tasks = [asyncio.create_task(self.download(counter)) for _ in range(int(self.row[4:]))]
        await asyncio.sleep(3)
        before, started = counter[0], time.monotonic()
        await asyncio.sleep(self.seconds)
        rate = (counter[0] - before) * 8 / 1e6 / (time.monotonic() - started)
        for task in tasks:
            task.cancel()
        return [rate]

    async def paced(self, size, whole, n):
        if n:
            await asyncio.sleep(0.35)
        return await self.fresh(size, whole)

    async def kept(self, seconds):
        connection, times, end = await self.connect(), [], time.monotonic() + seconds
        while (started := time.monotonic()) < end:
            _, last = await self.get(connection, 1024)
            times.append((last - started) * 1000)
        connection[1].close()
        return times

    async def news(self, seconds):
        times, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            times.append(await self.fresh(1024))
        return times


def percentile(values, share):
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--origin", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--visit", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--profiles", default="home,mobile,badwifi,longfat")
    parser.add_argument("--contenders", default="direct,retunnel,rathole")
    parser.add_argument("--rounds", type=int, default=1, help="each with its own seed")
    parser.add_argument("--rows", default="first,first20,100k,kept,beside,bulk1,bulk4,cold")
    options = parser.parse_args()
    if options.origin:
        return asyncio.run(origin())
    if options.visit:
        return print(json.dumps(asyncio.run(Visitors(**options.visit).measure())))
    emulator.BIN = str(TARGET / "peers" / "bin")
    for profile in options.profiles.split(","):
        results = {}
        for seed in range(1, options.rounds + 1):
            for name in options.contenders.split(","):
                with Tunnel(name, profile, seed) as tunnel:
                    for row in options.rows.split(","):
                        got = tunnel.cold() if row == "cold" else tunnel.visit(row)
                        for part, values in (got.items() if isinstance(got, dict) else [("", got)]):
                            results.setdefault(f"{row} {part}".strip(), {}).setdefault(name, []).extend(values)
        print(f"\n{profile}  ({emulator.spec(emulator.PROFILES[profile])})")
        for row, by_name in results.items():
            cells = []
            for name, values in by_name.items():
                if values:
                    cells.append(f"{name} {statistics.median(values):.1f} / {percentile(values, 0.99):.1f}")
            print(f"  {row:14}{'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
