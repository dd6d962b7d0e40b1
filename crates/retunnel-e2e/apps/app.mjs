// A local service with Node's own HTTP server. Prints its port.
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';

const server = createServer(async (request, response) => {
  const parts = [];
  try {
    for await (const part of request) parts.push(part);
  } catch {
    return;
  }
  const body = Buffer.concat(parts);
  const path = request.url.split('?')[0];
  const number = Number(path.split('/').at(-1));
  if (path.startsWith('/bytes/')) {
    const bytes = Buffer.alloc(number, 'node');
    response.writeHead(200, { 'Content-Length': number }).end(bytes);
  } else if (path.startsWith('/status/')) {
    response.writeHead(number).end(number === 204 || number === 304 ? undefined : `status ${number}`);
  } else if (path === '/redirect') {
    response.writeHead(302, { Location: '/echo?from=redirect' }).end();
  } else if (path === '/cookies') {
    response.writeHead(200, { 'Set-Cookie': ['a=1', 'b=2'] }).end('crumbs');
  } else if (path.startsWith('/chunks/')) {
    response.writeHead(200, { Trailer: 'X-Count' });
    for (let n = 0; n < number; n++) response.write(`chunk ${n}\n`);
    response.addTrailers({ 'X-Count': String(number) });
    response.end();
  } else if (path === '/close') {
    response.writeHead(200, { Connection: 'close' }).end('until the end');
  } else {
    const headers = [];
    for (let n = 0; n < request.rawHeaders.length; n += 2) {
      headers.push([request.rawHeaders[n].toLowerCase(), request.rawHeaders[n + 1]]);
    }
    const echo = {
      method: request.method, target: request.url, headers, length: body.length,
      sha256: createHash('sha256').update(body).digest('hex'),
    };
    response.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(echo));
  }
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
