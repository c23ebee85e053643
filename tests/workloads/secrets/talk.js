// Services and callers that let secrets slip into every place of a message that there is: HTTP/1,
// HTTP/2 and gRPC, each plain and over TLS. The modules of the Node workload are on NODE_PATH.
//   node talk.js serve TLS-FOLDER SECRETS          prints the ports on one line
//   node talk.js call TLS-FOLDER SECRETS PORTS     begins after a line on standard input
// SECRETS is a JSON file: a list of {secret, text, agent, path, anywhere}.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const http2 = require('node:http2');
const { once } = require('node:events');
const grpc = require('@grpc/grpc-js');

const [mode, folder, file, ports] = process.argv.slice(2);
const read = (name) => fs.readFileSync(`${folder}/${name}`);
const tls = { key: read('key.pem'), cert: read('cert.pem'), ca: read('ca.pem') };
const secrets = JSON.parse(fs.readFileSync(file, 'utf8'));
// What a field may hold as it is; all else percent-encoded.
const field = (text) => (/^[\x21-\x7e][\x20-\x7e]*$/.test(text) ? text : encodeURIComponent(text));

const answer = (number) => {
  const { secret, anywhere } = secrets[number];
  const shown = anywhere ? { 'x-asked': field(secret) } : {};
  return { 'set-cookie': `sid=${field(secret)}`, 'x-reason': field(secret), ...shown };
};

const request = (number) => {
  const { secret, anywhere } = secrets[number];
  const safe = encodeURIComponent(secret);
  const shown = anywhere ? { 'x-asked': field(secret), tracestate: `a=${safe}` } : {};
  return {
    'user-agent': `bot/1 (${field(secrets[number].agent)})`,
    authorization: `Bearer ${field(secret)}`,
    cookie: `sid=${field(secret)}`,
    'x-other': field(secret),
    baggage: `user=${safe},sentry-user_id=${safe}`,
    ...shown,
    'x-number': String(number),
  };
};

const paths = (number) => {
  const safe = encodeURIComponent(secrets[number].path);
  return [`/accounts/${safe}/orders?a=1&q=${safe}&token=${safe}`, `/v1/${safe}`, `/a;session=${safe}/b`];
};

const identity = (bytes) => bytes;
const method = (path) => ({
  path,
  requestStream: false,
  responseStream: false,
  requestSerialize: identity,
  requestDeserialize: identity,
  responseSerialize: identity,
  responseDeserialize: identity,
});

async function serve() {
  const listener = (req, res) => {
    res.writeHead(500, answer(Number(req.headers['x-number'])));
    res.end('no');
  };
  const web = [
    http.createServer(listener),
    https.createServer(tls, listener),
    http2.createServer(listener),
    http2.createSecureServer(tls, listener),
  ];
  const listening = [];
  for (const server of web) {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    listening.push(server.address().port);
  }
  const add = (call, done) => {
    const number = Number(call.metadata.get('x-number')[0]);
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(answer(number))) metadata.set(name, value);
    done({ code: grpc.status.INTERNAL, details: secrets[number].text, metadata });
  };
  for (const credentials of [
    grpc.ServerCredentials.createInsecure(),
    grpc.ServerCredentials.createSsl(tls.ca, [{ private_key: tls.key, cert_chain: tls.cert }]),
  ]) {
    const server = new grpc.Server();
    server.addService({ Add: method('/shop.v1.Cart/Add') }, { Add: add });
    const bind = (resolve, reject) =>
      server.bindAsync('127.0.0.1:0', credentials, (error, port) => (error ? reject(error) : resolve(port)));
    listening.push(await new Promise(bind));
  }
  console.log(`listening ${listening.join(',')}`);
}

const get1 = (module, port, path, headers) =>
  new Promise((resolve, reject) => {
    const options = { host: '127.0.0.1', port, path, headers, ca: tls.ca, agent: false };
    module.get(options, (res) => res.resume().on('end', resolve)).on('error', reject);
  });

const get2 = (session, path, headers) =>
  new Promise((resolve, reject) => {
    const stream = session.request({ ':path': path, ...headers });
    stream.on('error', reject).on('end', resolve).resume();
  });

async function call() {
  const [plain1, tls1, plain2, tls2, plainGrpc, tlsGrpc] = ports.split(',').map(Number);
  await once(process.stdin, 'data');
  let calls = 0;
  const sessions = [
    http2.connect(`http://127.0.0.1:${plain2}`),
    http2.connect(`https://localhost:${tls2}`, { ca: tls.ca }),
  ];
  const clients = [
    new grpc.Client(`127.0.0.1:${plainGrpc}`, grpc.credentials.createInsecure()),
    new grpc.Client(`localhost:${tlsGrpc}`, grpc.credentials.createSsl(tls.ca)),
  ];
  for (let number = 0; number < secrets.length; number += 1) {
    for (const path of paths(number)) {
      await get1(http, plain1, path, request(number));
      await get1(https, tls1, path, request(number));
      for (const session of sessions) await get2(session, path, request(number));
      calls += 4;
    }
    const names = ['/shop.v1.Cart/Add'];
    if (secrets[number].anywhere) names.push(`/shop/${encodeURIComponent(secrets[number].path)}`);
    for (const client of clients) {
      for (const name of names) {
        const metadata = new grpc.Metadata();
        for (const [key, value] of Object.entries(request(number))) {
          if (key !== 'user-agent') metadata.set(key, value);
        }
        const made = (resolve) =>
          client.makeUnaryRequest(name, identity, identity, Buffer.from([1]), metadata, (error) => resolve(error));
        const error = await new Promise(made);
        if (!error || ![grpc.status.INTERNAL, grpc.status.UNIMPLEMENTED].includes(error.code)) {
          throw new Error(`${name}: ${error}`);
        }
        calls += 1;
      }
    }
  }
  for (const session of sessions) session.close();
  for (const client of clients) client.close();
  console.log(`calls ${calls}`);
}

(mode === 'serve' ? serve() : call()).catch((error) => {
  console.error(error);
  process.exit(1);
});
