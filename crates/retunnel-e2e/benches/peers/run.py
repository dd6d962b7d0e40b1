"""Compares the tunnel with its peers: `make bench` (the quick rows, two minutes) or `make bench BENCH_ARGS=all`.

Contenders take turns within a round (A B C A B C …), so that noise of the machine hits all alike. Printed are medians,
and medians of the ratios to `--base` within each round. CPU is what the contender's processes used (server and client),
read from /proc/PID/task/*/schedstat.
"""

import argparse
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contenders as c
import loads as l


def rows(seconds):
    """name -> (origin, contenders, measure)"""
    http = [c.Retunnel, c.RetunnelBare, c.Rathole, c.Bore, c.Nginx, c.Nginx2, c.Haproxy2]
    post = Path(tempfile.gettempdir()) / f"bench-post-{os.getpid()}.lua"
    post.write_text('wrk.method = "POST"\nwrk.body = string.rep("x", 16384)\n')
    tcp = [c.RetunnelTcp, c.Splice2, c.Rathole, c.Bore, c.Haproxy2Tcp]
    few = [c.Retunnel, c.RetunnelBare, c.Rathole, c.Bore]
    found = {
        "http-64": ("http", http, lambda x: l.wrk(x, 64, seconds)),
        "http-1": ("http", http, lambda x: l.wrk(x, 1, seconds)),
        "http-512": ("http", http, lambda x: l.wrk(x, 512, seconds)),
        "http-16k": ("http", few, lambda x: l.wrk(x, 64, seconds, "/16k")),
        "http-256k": ("http", few, lambda x: l.wrk(x, 64, seconds, "/256k")),
        "http-post-16k": ("http", few, lambda x: l.wrk(x, 64, seconds, "/post", script=post)),
        "http-new": ("http", http, lambda x: l.wrk(x, 64, seconds, close=True)),
        "tcp-1-down": ("bulk", tcp, lambda x: l.bulk(x, 1, "D", seconds)),
        "tcp-8-down": ("bulk", tcp, lambda x: l.bulk(x, 8, "D", seconds)),
        "tcp-1-up": ("bulk", tcp, lambda x: l.bulk(x, 1, "U", seconds)),
        "tcp-8-up": ("bulk", tcp, lambda x: l.bulk(x, 8, "U", seconds)),
        # A TCP tunnel to the same service, too: what HTTP costs.
        "http-bulk-down": ("http", [*few, c.RetunnelTcp, c.Direct], lambda x: l.http_bulk(x, "D")),
        "http-bulk-up": ("bulk", [*few, c.RetunnelTcp, c.Direct], lambda x: l.http_bulk(x, "U")),
        "beside-nothing": ("both", few, lambda x: l.wrk(x, 4, seconds)),
        "beside-saturating": ("both", few, lambda x: beside(x, seconds, rate=None)),
        "beside-100MB/s": ("both", few, lambda x: beside(x, seconds, rate=1e8)),
        "beside-stalled": ("both", few, lambda x: beside(x, seconds, streams=8, rate=0)),
        "syscalls-64": ("http", [c.Retunnel, c.Rathole, c.Nginx], lambda x: syscalls(x, seconds)),
        "tls-http-64": ("http", [c.RetunnelTcpTls, c.RetunnelTls, c.RatholeTls], lambda x: l.wrk(x, 64, seconds)),
        "tls-tcp-1-down": ("bulk", [c.RetunnelTcpTls, c.RatholeTls], lambda x: l.bulk(x, 1, "D", seconds)),
        "tls-tcp-1-up": ("bulk", [c.RetunnelTcpTls, c.RatholeTls], lambda x: l.bulk(x, 1, "U", seconds)),
    }
    return found


# Scenarios that start their own processes.
FRESH = {
    "memory-1000": ([c.Retunnel, c.Rathole, c.Bore, c.Nginx2], lambda x: memory(x, 1000)),
    "memory-9500": ([c.Retunnel, c.Rathole, c.Bore, c.Nginx2], lambda x: memory(x, 9500)),
    "cold-start": ([c.Retunnel, c.Rathole, c.Bore], lambda x: cold_start(x)),
    "cycles-visitors": ([c.Retunnel], lambda x: visitor_cycles(x)),
    "cycles-tunnels": ([c.Retunnel], lambda x: tunnel_cycles(x)),
}

QUICK = ["http-64", "http-1", "http-new", "tcp-1-down", "http-bulk-down", "cold-start"]


def beside(contender, seconds, streams=1, rate=None):
    background = l.Background(contender, streams, rate)
    try:
        before, started = background.count, time.monotonic()
        result = l.wrk(contender, 4, seconds)
        return {**result, "beside MiB/s": (background.count - before) / (time.monotonic() - started) / (1 << 20)}
    finally:
        background.end()


def syscalls(contender, seconds):
    """System calls of each process for one request, counted by the kernel."""
    pids = contender.pids()
    counters = [
        subprocess.Popen(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        for pid in pids
    ]
    time.sleep(0.3)
    rate = l.wrk(contender, 64, seconds)["rate"]
    counts = []
    for counter in counters:
        counter.send_signal(signal.SIGINT)
        counted = counter.communicate()[1].split(",")[0]
        # Of a process that slept there is no count.
        counts.append(int(counted) if counted.isdigit() else 0)
    return {f"process{n}": count / (rate * seconds) for n, count in enumerate(c for c in counts if c > rate / 10)}


def held(contender):
    """Descriptors, threads and KiB of all processes."""
    paths = [Path(f"/proc/{pid}") for pid in contender.pids()]
    return {
        "fds": sum(len(list((path / "fd").iterdir())) for path in paths),
        "threads": sum(len(list((path / "task").iterdir())) for path in paths),
        "mib": contender.memory() / 1024,
    }


def grown(contender, cycle, count=100_000):
    """What is held after a tenth of the cycles and after all of them, each time once everything had time to end."""
    cycle(count // 10)
    time.sleep(30)
    early = held(contender)
    started = time.monotonic()
    done = cycle(count - count // 10)
    seconds = time.monotonic() - started
    time.sleep(30)
    late = held(contender)
    return {"cycles/s": done / seconds, **{f"{key} early": early[key] for key in early}, **{f"{key} late": late[key] for key in late}}


def visitor_cycles(contender):
    """Visitors that connect, ask once and go."""
    contender.start()

    def cycle(count):
        done = 0
        while done < count:
            done += l.wrk(contender, 64, 2, close=True)["requests"]
        return done

    return grown(contender, cycle)


def tunnel_cycles(contender):
    """Tunnels that are opened and closed, through the client's local API."""
    inspector = c.free_port()
    contender.client_options = ("--inspect-addr", f"127.0.0.1:{inspector}")
    contender.start()
    body = json.dumps({"name": "again", "proto": "http", "addr": str(contender.origin)})

    def cycle(count):
        connection = http.client.HTTPConnection("127.0.0.1", inspector)
        for _ in range(count):
            for method, path, text, status in (("POST", "/api/tunnels", body, 201), ("DELETE", "/api/tunnels/again", None, 204)):
                connection.request(method, path, text, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                found = answer.read()
                assert answer.status == status, (answer.status, found)
        return count

    return grown(contender, cycle)


def memory(contender, count):
    contender.start()
    start = contender.memory()
    idle = l.Idle(contender, count)
    time.sleep(6)
    waiting = contender.memory()
    idle.end()
    if isinstance(contender, c.Retunnel):
        l.wrk(contender, 64, 2)
    time.sleep(30)
    return {"start": start / 1024, "kib": (waiting - start) / count, "after": contender.memory() / 1024}


def cold_start(contender):
    """Client start to the first 200; the account is known and the server runs."""
    contender.start()
    end_client(contender)
    times = []
    for _ in range(20):
        started = time.monotonic()
        begin_client(contender)
        l.first_answer(contender)
        times.append((time.monotonic() - started) * 1000)
        end_client(contender)
    return {"ms": l.median(times)}


def end_client(contender):
    client = contender.processes.pop()
    client.terminate()
    client.wait()
    time.sleep(0.05)
    if not isinstance(contender, c.Retunnel):
        # bore refuses the next client until it noticed that the last one is gone.
        c.wait_until("the end of the client is noticed", lambda: not c.listens(contender.port))


def begin_client(contender):
    waiting, c.wait_until = c.wait_until, lambda *_: None
    try:
        if isinstance(contender, c.Retunnel):
            contender.spawn(
                contender.program, "--quiet", "--log-level", "warn", "http", str(contender.origin), "--server",
                f"127.0.0.1:{contender.server_port}", "--subdomain", "bench")
        else:
            contender.start_client()
    finally:
        c.wait_until = waiting


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="rows to measure (default: the quick set); `all` for all")
    parser.add_argument("--rounds", type=int, help="default: 2 for the quick set, otherwise 3")
    parser.add_argument("--seconds", type=int, help="of each run; default: 1 for the quick set, otherwise 2")
    parser.add_argument("--only", help="contenders, comma-separated")
    parser.add_argument("--before", help="compare with this earlier build of our program instead of the peers")
    parser.add_argument("--base", default="rathole", help="what ratios are taken to")
    parser.add_argument("--out", help="also append every run to this file as JSON lines")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    options.rounds = options.rounds or (3 if options.rows else 2)
    known = rows(options.seconds or (2 if options.rows else 1))
    wanted = options.rows or QUICK
    if wanted == ["all"]:
        wanted = [*known, *FRESH]
    origin = l.Origin()
    out = open(options.out, "a") if options.out else None
    try:
        for row in wanted:
            if row in FRESH:
                classes, measure = FRESH[row]
                kind, fresh = "http", True
            elif row in known:
                kind, classes, measure = known[row]
                fresh = False
            else:
                sys.exit(f"no row {row}; there are {', '.join([*known, *FRESH])}")
            if options.before:
                ours = [x for x in classes if issubclass(x, c.Retunnel)]
                classes = [y for x in ours for y in (c.earlier(x, options.before), x)]
            if options.only:
                classes = [x for x in classes if x.name in options.only.split(",")]
            ports = {"http": (origin.http, None), "bulk": (origin.bulk.port, None), "both": (origin.http, origin.bulk.port)}[kind]
            results = run(row, classes, measure, ports, 1 if fresh else options.rounds, fresh, out)
            show(row, results, options.base)
    finally:
        origin.stop()


def run(row, classes, measure, ports, rounds, fresh, out):
    results = {x.name: [] for x in classes}
    running = []
    try:
        if not fresh:
            running = [x(*ports).start() for x in classes]
            for contender in running:
                measure(contender)
        for _ in range(rounds):
            for n, x in enumerate(classes):
                contender = x(*ports) if fresh else running[n]
                try:
                    result = measure(contender)
                finally:
                    if fresh:
                        contender.stop()
                results[x.name].append(result)
                if out:
                    out.write(json.dumps({"row": row, "contender": x.name, **result}) + "\n")
                    out.flush()
    finally:
        for contender in running:
            contender.stop()
    return results


def show(row, results, base):
    names = sorted({key for runs in results.values() for run in runs for key in run})
    default = next((name for name in (base, f"{base}-tls") if name in results), next(iter(results)))
    print(f"\n{row}  (ratios to {'the build before' if f'{next(iter(results))}'.endswith('-before') else default})")
    for contender, runs in results.items():
        # Each build is compared with the same contender of the earlier one.
        base = f"{contender}-before" if f"{contender}-before" in results else default
        cells = []
        for name in (name for name in names if all(name in run for run in runs)):
            value = l.median([run[name] for run in runs])
            ratios = [run[name] / other[name] for run, other in zip(runs, results[base]) if other.get(name)]
            ratio = f" ({l.median(ratios):.2f})" if ratios and contender != base else ""
            cells.append(f"{name} {value:.2f}{ratio}")
        print(f"  {contender:17}{'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
