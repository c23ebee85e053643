// An ordinary HTTP service and its client, with Node's own modules. The client
// begins after a line on standard input, and writes one JSON line per request
// to --log.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const http2 = require('node:http2');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');

const PIECE = 'x'.repeat(100);

// --- server ---------------------------------------------------------------

async function answer(request, response) {
  let length = 0;
  for await (const piece of request) length += piece.length;
  if (request.method === 'POST' || request.method === 'PUT') {
    response.end(`${length}\n`);
    return;
  }
  switch (request.url) {
    case '/length': {
      const body = PIECE.repeat(30);
      response.setHeader('content-length', body.length);
      response.end(body);
      break;
    }
    case '/chunked':
      for (let n = 0; n < 4; n++) response.write(PIECE);
      response.end();
      break;
    case '/events':
      response.setHeader('content-type', 'text/event-stream');
      for (let n = 0; n < 4; n++) {
        await sleep(50);
        response.write(`data: ${n}\n\n`);
      }
      response.end();
      break;
    case '/close':
      response.setHeader('connection', 'close');
      response.removeHeader('transfer-encoding');
      response.end(PIECE);
      break;
    default:
      response.statusCode = Number(request.url.slice(1));
      response.end('no\n');
  }
}

// RFC 6455 §5.2, short unfragmented frames alone.
function echoFrames(socket) {
  let bytes = Buffer.alloc(0);
  socket.on('error', () => {});
  socket.on('data', (piece) => {
    bytes = Buffer.concat([bytes, piece]);
    while (bytes.length >= 6 && bytes.length >= 6 + (bytes[1] & 0x7f)) {
      const length = bytes[1] & 0x7f;
      const text = bytes.subarray(6, 6 + length);
      if ((bytes[0] & 0x0f) === 8) {
        socket.end(Buffer.from([0x88, 0]));
      } else {
        socket.write(Buffer.concat([Buffer.from([0x81, length]), text]));
      }
      bytes = bytes.subarray(6 + length);
    }
  });
}

function runServer(args) {
  const port = Number(args.listen.split(':').pop());
  const server = args.http2 ? http2.createServer(answer) : http.createServer(answer);
  if (!args.http2) {
    server.on('upgrade', (request, socket) => {
      const key = request.headers['sec-websocket-key'];
      const accept = crypto.createHash('sha1')
        .update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n' +
        `Connection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
      echoFrames(socket);
    });
  }
  process.on('SIGTERM', () => process.exit(0));
  server.listen(port, '127.0.0.1', () => console.log('listening'));
}

// --- client ---------------------------------------------------------------

async function runClient(args) {
  const [host, port] = args.target.split(':');
  const log = fs.openSync(args.log, 'a');
  const now = () => Date.now() * 1e6;
  let count = 0;

  function begin(method, path, version, least = 0) {
    count++;
    const id = `node-${count}-${process.pid}`;
    return { id, protocol: 'http', method, path, version, least_ns: least, start_ns: now() };
  }

  function end(call, status) {
    // Whole milliseconds, so the end is within the one that follows.
    const line = JSON.stringify({ ...call, status, end_ns: now() + 1e6 });
    fs.writeSync(log, `${line}\n`);
  }

  function request(agent, method, path, body, headers = {}, least = 0) {
    const call = begin(method, path, '1.1', least);
    return new Promise((resolve, reject) => {
      const options = { agent, host, port, method, path, headers: { 'x-call-id': call.id, ...headers } };
      const sent = http.request(options, (response) => {
        response.resume();
        response.on('end', () => {
          end(call, response.statusCode);
          resolve();
        });
      });
      sent.on('error', reject);
      sent.on('continue', () => sent.end(body));
      if (headers.expect) sent.flushHeaders();
      else sent.end(body);
    });
  }

  const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });
  if (args.features.includes('http1')) {
    for (let round = 0; round < 3; round++) {
      await Promise.all([
        request(agent, 'GET', '/length'),
        request(agent, 'HEAD', '/length'),
        request(agent, 'GET', '/chunked'),
        request(agent, 'POST', '/echo', Buffer.alloc(300_000)),
        request(agent, 'PUT', '/echo', 'short', { 'transfer-encoding': 'chunked' }),
        request(agent, 'GET', '/404'),
        request(agent, 'GET', '/500'),
      ]);
    }
    await request(agent, 'POST', '/echo', Buffer.alloc(5000), { expect: '100-continue' });
    await request(agent, 'GET', '/events', undefined, {}, 200e6);
    await request(agent, 'GET', '/close');
  }
  if (args.features.includes('websocket')) {
    const call = begin('GET', '/ws', '1.1');
    const headers = {
      'x-call-id': call.id,
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': crypto.randomBytes(16).toString('base64'),
    };
    const sent = http.request({ host, port, path: '/ws', headers }).end();
    const [response, socket] = await once(sent, 'upgrade');
    end(call, response.statusCode);
    socket.write(Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69]));
    await once(socket, 'data');
    socket.end(Buffer.from([0x88, 0x80, 0, 0, 0, 0]));
  }
  if (args.features.includes('h2c')) {
    const session = http2.connect(`http://${args.target}`);
    const one = async (method, path, body) => {
      const call = begin(method, path, '2');
      const stream = session.request({ ':method': method, ':path': path, 'x-call-id': call.id });
      const [response, ended] = [once(stream, 'response'), once(stream, 'end')];
      stream.end(body);
      stream.resume();
      const [headers] = await response;
      await ended;
      end(call, headers[':status']);
    };
    await Promise.all([one('GET', '/length'), one('POST', '/echo', Buffer.alloc(100_000)), one('GET', '/404')]);
    await one('GET', '/500');
    await one('HEAD', '/length');
    session.close();
  }
  agent.destroy();
}

const text = { type: 'string' };
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    listen: text,
    target: text,
    log: text,
    features: { type: 'string', default: '' },
    http2: { type: 'boolean', default: false },
  },
});
if (positionals[0] === 'server') {
  runServer(values);
} else {
  values.features = values.features.split(',');
  process.stdin.once('data', () => {
    process.stdin.destroy();
    runClient(values);
  });
}
