"""A local service with HTTP, server-sent events and WebSockets, on aiohttp. Prints its port. Arguments: a port, or nothing."""

import asyncio
import hashlib
import json
import sys

from aiohttp import WSCloseCode, WSMsgType, web

listeners = set()
closed = asyncio.Queue()


async def echo(request):
    body = await request.read()
    return web.json_response({
        "method": request.method,
        "target": request.raw_path,
        "headers": [[name.decode().lower(), value.decode("latin-1")] for name, value in request.raw_headers],
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    })


async def many(request):
    return web.Response(body=b"0123456789" * (int(request.match_info["count"]) // 10))


async def status(request):
    number = int(request.match_info["number"])
    return web.Response(status=number, text="" if number in (204, 304) else f"status {number}")


async def redirect(request):
    return web.Response(status=302, headers={"Location": "/echo?from=redirect"})


async def cookies(request):
    answer = web.Response(text="crumbs")
    answer.headers.add("Set-Cookie", "a=1")
    answer.headers.add("Set-Cookie", "b=2")
    return answer


async def stream(request):
    """Chunks without a length."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    for number in range(int(request.match_info["count"])):
        await answer.write(b"chunk %d\n" % number)
    return answer


async def cut(request):
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b"only the beginning")
    request.transport.abort()
    return answer


async def events(request):
    """One event for each call of `emit`."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    queue = asyncio.Queue()
    listeners.add(queue)
    while (event := await queue.get()) != "end":
        await answer.write(f"data: {event}\n\n".encode())
    return answer


async def emit(request):
    event = await request.json()
    for queue in listeners:
        queue.put_nowait(event)
    if event == "end":
        listeners.clear()
    return web.Response()


async def socket(request):
    """Echoes; `close CODE REASON` ends it."""
    answer = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
    await answer.prepare(request)
    async for message in answer:
        if message.type == WSMsgType.TEXT and message.data.startswith("close "):
            _, code, reason = message.data.split(" ", 2)
            await answer.close(code=int(code), message=reason.encode())
        elif message.type == WSMsgType.TEXT:
            await answer.send_str(message.data)
        else:
            await answer.send_bytes(message.data)
    closed.put_nowait(answer.close_code or int(WSCloseCode.ABNORMAL_CLOSURE))
    return answer


async def last_close(request):
    return web.json_response(await closed.get())


async def refuse(request):
    return web.Response(status=403, text="no")


async def main():
    app = web.Application(client_max_size=0)
    app.add_routes([
        web.get("/bytes/{count}", many),
        web.get("/status/{number}", status),
        web.get("/cookies", cookies),
        web.get("/stream/{count}", stream),
        web.get("/cut", cut),
        web.get("/events", events),
        web.post("/emit", emit),
        web.get("/ws", socket),
        web.get("/ws/close", last_close),
        web.get("/ws/refuse", refuse),
        web.get("/redirect", redirect),
        web.route("*", "/{rest:.*}", echo),
    ])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0, reuse_address=True)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
