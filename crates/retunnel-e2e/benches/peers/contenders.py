"""The programs that are compared: each starts its processes and says where its visitors connect."""

import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
RETUNNEL = Path(os.environ.get("BENCH_RETUNNEL", TARGET / "release" / "retunnel"))
PEERS = TARGET / "peers" / "bin"
RELAY = TARGET / "release" / "examples" / "splice_relay"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.005)
    raise RuntimeError(f"{what} did not happen within {seconds} s")


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Contender:
    """Processes that carry visitors of `port` to the origin. `host` is the Host header of HTTP visitors."""

    name = "?"
    host = "bench"
    visitors = "http"

    def __init__(self, origin_port, byte_service=None):
        self.origin = origin_port
        # The port of a byte service that a second tunnel of the same processes carries to `bulk_port`.
        self.byte_service = byte_service
        self.bulk_port = free_port()
        self.dir = tempfile.TemporaryDirectory(prefix="bench-")
        self.processes = []
        self.port = free_port()

    def spawn(self, *args, **options):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RETUNNEL_")}
        environment["HOME"] = self.dir.name
        log = open(Path(self.dir.name) / "log", "ab")
        process = subprocess.Popen(
            [str(arg) for arg in args], stdin=subprocess.DEVNULL, stdout=options.get("stdout", log), stderr=log,
            env=environment, cwd=self.dir.name, preexec_fn=os.setsid,
        )
        self.processes.append(process)
        return process

    def write(self, name, text):
        path = Path(self.dir.name) / name
        path.write_text(text)
        return path

    def start_server(self):
        """What listens before a client comes."""

    def start_client(self):
        """What makes the origin reachable. Returns once it is, for the scenarios that need no finer time."""

    def start(self):
        self.start_server()
        self.start_client()
        return self

    def pids(self):
        found = []
        for process in self.processes:
            if process.poll() is None:
                found += [process.pid, *children(process.pid)]
        return found

    def stop(self):
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        self.processes = []
        self.dir.cleanup()

    def cpu(self):
        """CPU seconds used so far by all processes."""
        total = 0
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                try:
                    total += int((task / "schedstat").read_text().split()[0])
                except OSError:
                    pass
        return total / 1e9

    def memory(self):
        """Resident KiB, all processes together (proportional set size: what is shared counts once)."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
        except OSError:
            pass
    return found


class Direct(Contender):
    """No tunnel at all: what the load generator and the origin reach."""

    name = "direct"

    def start(self):
        self.port = self.origin
        return self


class Retunnel(Contender):
    name = "retunnel"
    host = "bench.localhost"
    protocol = "http"
    server_options = ()
    client_options = ()
    scheme = ""
    program = RETUNNEL

    def start_server(self):
        self.server_port = free_port()
        # All visitors come from one address here. Earlier builds have no such limit.
        limits = self.write("server.yml", "limits: {max_connections: 20000, max_connections_per_address: 10000}\n")
        check = [self.program, "config", "--check-server", limits]
        config = ("--config", limits) if subprocess.run(check, capture_output=True).returncode == 0 else ()
        self.spawn(
            self.program, "--log-level", "warn", "server", "--listen", f"127.0.0.1:{self.server_port}", "--data-dir",
            f"{self.dir.name}/data", "--tcp-ports", f"{self.bulk_port}-{self.bulk_port}", "--registration", "open",
            *config, *self.server_options,
        )
        self.port = self.server_port if self.protocol == "http" else self.bulk_port
        wait_until("retunnel server listens", lambda: listens(self.server_port))

    def start_client(self):
        named = ("--subdomain", "bench") if self.protocol == "http" else ()
        what = (self.protocol, str(self.origin), *named)
        if self.byte_service:
            what = ("start", self.write("retunnel.yml", f"""
tunnels:
  - {{name: bench, protocol: http, local_port: {self.origin}, subdomain: bench}}
  - {{name: bulk, protocol: tcp, local_port: {self.byte_service}}}
"""))
        client = self.spawn(
            self.program, "--json", "--log-level", "warn", *what, "--server", f"{self.scheme}127.0.0.1:{self.server_port}",
            *self.client_options, stdout=subprocess.PIPE,
        )
        assert json.loads(client.stdout.readline()), "no tunnel"


class RetunnelBare(Retunnel):
    """Without the inspector, which no peer has."""

    name = "no-inspect"
    client_options = ("--no-inspect",)


class RetunnelTcp(Retunnel):
    protocol = "tcp"


def earlier(contender, program):
    """The same contender with another build of our program."""
    return type(f"Earlier{contender.__name__}", (contender,), {"name": f"{contender.name}-before", "program": program})


class Rathole(Contender):
    name = "rathole"
    transport = ""

    def start_server(self):
        self.control = free_port()
        path = self.write("server.toml", f"""
[server]
bind_addr = "127.0.0.1:{self.control}"
default_token = "bench"
{self.transport_of("server")}
[server.services.bench]
bind_addr = "127.0.0.1:{self.port}"
{self.second("server", "bind_addr", self.bulk_port)}
""")
        self.spawn(PEERS / "rathole", "--server", path)
        wait_until("rathole listens", lambda: listens(self.control))

    def start_client(self):
        path = self.write("client.toml", f"""
[client]
remote_addr = "127.0.0.1:{self.control}"
default_token = "bench"
{self.transport_of("client")}
[client.services.bench]
local_addr = "127.0.0.1:{self.origin}"
{self.second("client", "local_addr", self.byte_service)}
""")
        self.spawn(PEERS / "rathole", "--client", path)
        wait_until("rathole serves", lambda: listens(self.port))

    def second(self, side, key, port):
        return f'[{side}.services.bulk]\n{key} = "127.0.0.1:{port}"' if self.byte_service else ""

    def transport_of(self, side):
        return ""


class RatholeTls(Rathole):
    """Its server decides for TLS 1.2 with ChaCha20 and takes no other settings."""

    name = "rathole-tls"

    def start_server(self):
        super().start_server()
        say_encryption(self, self.control)

    def transport_of(self, side):
        cert, key, pkcs = certificate(self.dir.name)
        if side == "server":
            return f'[server.transport]\ntype = "tls"\n[server.transport.tls]\npkcs12 = "{pkcs}"\npkcs12_password = "1234"'
        return f'[client.transport]\ntype = "tls"\n[client.transport.tls]\ntrusted_root = "{cert}"\nhostname = "localhost"'


def certificate(directory):
    """A CA-less certificate for localhost: PEM certificate, PEM key, PKCS #12."""
    cert, key, pkcs = (f"{directory}/{name}" for name in ("cert.pem", "key.pem", "id.pfx"))
    if not os.path.exists(pkcs):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
            **quiet)
        # Not with -legacy: RC2, which that means, is what OpenSSL 3 refuses to read.
        subprocess.run(["openssl", "pkcs12", "-export", "-passout", "pass:1234", "-inkey", key, "-in", cert, "-out", pkcs],
                       **quiet)
    return cert, key, pkcs


def say_encryption(contender, port):
    """Fails unless `port` speaks TLS with the contender's certificate."""
    context = ssl.create_default_context(cafile=certificate(contender.dir.name)[0])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            print(f"{contender.name} speaks {secure.version()}, {secure.cipher()[0]}", flush=True)


class RetunnelTls(Retunnel):
    name = "retunnel-tls"
    # Its visitors come by TLS as well.
    visitors = "https"
    scheme = "https://"
    client_options = ("--insecure",)

    def start_server(self):
        cert, key, _ = certificate(self.dir.name)
        self.server_options = ("--tls-cert", cert, "--tls-key", key)
        super().start_server()
        say_encryption(self, self.server_port)


class RetunnelTcpTls(RetunnelTls):
    """Only the link is encrypted, as with rathole."""

    name = "retunnel-tcp-tls"
    visitors = "http"
    protocol = "tcp"


class Bore(Contender):
    name = "bore"

    def start_server(self):
        self.spawn(PEERS / "bore", "server", "--min-port", "1024")
        wait_until("bore listens", lambda: listens(7835))

    def start_client(self):
        if self.byte_service:
            self.spawn(PEERS / "bore", "local", self.byte_service, "--to", "127.0.0.1", "--port", self.bulk_port)
        self.spawn(PEERS / "bore", "local", self.origin, "--to", "127.0.0.1", "--port", self.port)
        wait_until("bore serves", lambda: listens(self.port))


class Nginx(Contender):
    """One hop with a keep-alive pool; HTTP only."""

    name = "nginx1"
    hops = 1

    def start_server(self):
        ports = [self.port, *(free_port() for _ in range(self.hops - 1)), self.origin]
        for hop, (listen, target) in enumerate(zip(ports, ports[1:])):
            path = self.write(f"nginx{hop}.conf", f"""
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {self.dir.name}/pid{hop}; error_log stderr crit;
events {{ worker_connections 19000; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 100000000; keepalive_timeout 1h;
  client_body_temp_path {self.dir.name}/body{hop}; proxy_temp_path {self.dir.name}/proxy{hop};
  upstream next {{ server 127.0.0.1:{target}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{listen} backlog=4096;
    location / {{
      proxy_pass http://next; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_request_buffering off; proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
""")
            self.spawn("nginx", "-c", path, "-p", self.dir.name)
            wait_until("nginx listens", lambda: listens(listen))


class Nginx2(Nginx):
    name = "nginx2"
    hops = 2


class Haproxy2(Contender):
    name = "haproxy2"
    mode = "http"

    def start_server(self):
        ports = [self.port, free_port(), self.origin]
        for hop, (listen, target) in enumerate(zip(ports, ports[1:])):
            path = self.write(f"haproxy{hop}.cfg", f"""
global
  nbthread 1
  maxconn {3000 if self.mode == "tcp" else 9000}
defaults
  mode {self.mode}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  {"option splice-auto" if self.mode == "tcp" else "http-reuse always"}
frontend in
  bind 127.0.0.1:{listen} backlog 4096
  default_backend out
backend out
  server origin 127.0.0.1:{target}
""")
            self.spawn("haproxy", "-db", "-f", path)
            wait_until("haproxy listens", lambda: listens(listen))


class Haproxy2Tcp(Haproxy2):
    mode = "tcp"


class Splice2(Contender):
    """Two relays that move bytes by splice(2) and do nothing else: the floor for two hops."""

    name = "splice2"

    def start_server(self):
        between = free_port()
        for listen, target in ((self.port, between), (between, self.origin)):
            self.spawn(RELAY, f"127.0.0.1:{listen}", f"127.0.0.1:{target}")
            wait_until("the relay listens", lambda: listens(listen))
