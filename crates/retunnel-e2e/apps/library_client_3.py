"""Opens tunnels with the library of a published client 3.x. Arguments: server, token, and a JSON list of tunnels."""

import asyncio
import json
import sys

from retunnel import ReTunnelClient, TunnelConfig


async def main():
    server, token, tunnels = sys.argv[1:4]
    client = ReTunnelClient(server, token)
    configs = [TunnelConfig(**config) for config in json.loads(tunnels)]
    # Without a token this registers an account.
    await client.connect()
    if len(configs) == 1:
        opened = [await client.request_tunnel(configs[0])]
    else:
        for config in configs:
            client.add_tunnel(config)
        opened = await client.start()
    for tunnel in opened:
        print(json.dumps({"url": tunnel.url, "subdomain": tunnel.subdomain}), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
