"""Opens a tunnel with the library of a published client. Arguments: server, port, subdomain, credentials."""

import asyncio
import json
import sys

from retunnel import ReTunnelClient, TunnelConfig


async def main():
    server, port, subdomain, auth = sys.argv[1:5]
    client = ReTunnelClient(server_addr=server)
    await client.connect()
    config = TunnelConfig(protocol="http", local_port=int(port), subdomain=subdomain or None, auth=auth or None)
    tunnel = await client.request_tunnel(config)
    print(json.dumps({"url": tunnel.url}), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
