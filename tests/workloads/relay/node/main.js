'use strict';
// The relay of proto/relay.proto, with grpc-js, or with --http over HTTP/1 with its
// messages in JSON: an ordinary service without tracing code.

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const { Relay } = grpc.loadPackageDefinition(
  loader.loadSync(path.join(__dirname, 'relay.proto'), { keepCase: true, defaults: true }),
).tracewire.relay;

const { values: flags, positionals: [side] } = parseArgs({
  allowPositionals: true,
  options: {
    listen: { type: 'string', default: '127.0.0.1:0' },
    connections: { type: 'string', default: '1' },
    log: { type: 'string' },
    http: { type: 'boolean', default: false },
  },
});
if (side !== 'serve') throw new Error('usage: run serve');

// A few connections to each address that was ever called.
const stubs = new Map();
let next = 0;
function stub(address) {
  if (!stubs.has(address)) {
    stubs.set(address, Array.from({ length: Number(flags.connections) }, () =>
      new Relay(address, grpc.credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 })));
  }
  const all = stubs.get(address);
  return all[next++ % all.length];
}

async function one(hop, k, depth) {
  if (depth > 0) return Promise.resolve().then(() => one(hop, k, depth - 1));
  if (hop.delay_ms > 0) await sleep(Math.random() * hop.delay_ms);
  const id = `${hop.id}/${k}`;
  if (flags.http) return (await post(k, hop.route[0], { ...hop, id, route: hop.route.slice(1) })).count;
  const metadata = new grpc.Metadata();
  metadata.set('x-call-id', id);
  const ask = { ...hop, id, route: hop.route.slice(1), count: 0 };
  return new Promise((resolve, reject) => {
    stub(hop.route[0]).Pass(ask, metadata, (error, answer) => (error ? reject(error) : resolve(answer.count)));
  });
}

async function onwards(hop) {
  if (hop.route.length === 0) return 0;
  const counts = await Promise.all(
    Array.from({ length: Math.max(hop.fan, 1) }, (_, k) => one(hop, k, hop.depth)));
  return counts.reduce((sum, count) => sum + count, 0);
}

const log = flags.log && fs.openSync(flags.log, 'a');
const service = {
  async Pass(call, callback) {
    const hop = call.request;
    if (log) {
      fs.writeSync(log, `${JSON.stringify({ id: hop.id, traceparent: call.metadata.get('traceparent') })}\n`);
    }
    try {
      callback(null, { id: hop.id, count: await onwards(hop) + 1 });
    } catch (error) {
      callback(error);
    }
  },
  async Flow(call) {
    for await (const hop of call) call.write({ id: hop.id, count: await onwards(hop) });
    call.end();
  },
};

// Fewer connections than calls: some wait for one.
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });

async function post(k, address, hop) {
  const body = JSON.stringify(hop);
  const options = { method: 'POST', headers: { 'x-call-id': hop.id, 'content-type': 'application/json' } };
  const url = `http://${address}/pass`;
  if (k % 2) return (await fetch(url, { ...options, body })).json();
  return new Promise((resolve, reject) => {
    http.request(url, { ...options, agent }, (response) => resolve(text(response).then(JSON.parse)))
      .on('error', reject).end(body);
  });
}

async function text(stream) {
  let all = '';
  for await (const piece of stream.setEncoding('utf8')) all += piece;
  return all;
}

function serveHttp() {
  const [host, port] = flags.listen.split(':');
  http.createServer(async (request, response) => {
    const hop = { delay: 0, ...JSON.parse(await text(request)) };
    hop.delay_ms = hop.delay;
    response.end(JSON.stringify({ id: hop.id, count: await onwards(hop) + 1 }));
  }).listen(port, host, () => console.log('listening', flags.listen));
}

process.on('SIGTERM', () => process.exit(0));

function serveGrpc() {
  const server = new grpc.Server();
  server.addService(Relay.service, service);
  server.bindAsync(flags.listen, grpc.ServerCredentials.createInsecure(), (error) => {
    if (error) throw error;
    console.log('listening', flags.listen);
  });
}

if (flags.http) serveHttp();
else serveGrpc();
