'use strict';
// An ordinary gRPC service and its client. Both sides write one JSON line per
// call to --log.

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { performance } = require('node:perf_hooks');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const LANG = 'node';
const SERVICE = 'tracewire.test.Exercise/';
const MIB = 1024 * 1024;
const LIMITS = {
  'grpc.max_receive_message_length': 64 * MIB,
  'grpc.max_send_message_length': 64 * MIB,
  // Node's HTTP/2 takes header lists of 64 KiB unless told otherwise.
};
const CHANNEL_OPTIONS = {
  ...LIMITS,
  'grpc.use_local_subchannel_pool': 1,
  'grpc.enable_retries': 0,
  'grpc.enable_http_proxy': 0,
  'grpc.service_config_disable_resolution': 1,
};
const MIXED = ['unary', 'errors', 'server-stream', 'client-stream', 'bidi'];
const SCENARIOS = [
  ...MIXED, 'cancel', 'deadline', 'large', 'metadata', 'churn', 'mixed',
];

const { Exercise } = grpc.loadPackageDefinition(
  loader.loadSync(path.join(__dirname, 'exercise.proto'), {
    keepCase: true,
    defaults: true,
  }),
).tracewire.test;

// Unix time in nanoseconds, as digits. Node gives the wall clock in whole
// milliseconds only: the finer clock is kept inside the current millisecond.
let clockOffset = BigInt(Math.round(performance.timeOrigin * 1e3)) * 1000n +
  BigInt(Math.round(performance.now() * 1e6)) - process.hrtime.bigint();
function now() {
  const coarse = BigInt(Date.now()) * 1_000_000n;
  const fine = process.hrtime.bigint();
  if (fine + clockOffset < coarse) {
    clockOffset = coarse - fine;
  } else if (fine + clockOffset > coarse + 1_100_000n) {
    clockOffset = coarse + 1_000_000n - fine;
  }
  return fine + clockOffset;
}

// What one side knows of one call; finish() writes it, once: a whole line
// with one write to a file opened for appending.
class Record {
  constructor(log, side, id, method) {
    Object.assign(this, { log, side, id, method, sent: 0, received: 0, traceparent: '' });
    this.done = false;
    this.start = now();
  }

  finish(code, message) {
    if (this.done) return;
    this.done = true;
    const text = JSON.stringify;
    fs.writeSync(
      this.log,
      `{"side":${text(this.side)},"id":${text(this.id)},` +
        `"method":${text(SERVICE + this.method)},` +
        `"code":${text(grpc.status[code])},"message":${text(message ?? '')},` +
        `"start_ns":${this.start},"end_ns":${now()},` +
        `"sent":${this.sent},"received":${this.received},` +
        `"traceparent":${text(this.traceparent)}}\n`,
    );
  }
}

const answer = (ask, n) => ({
  id: ask.id,
  n,
  payload: Buffer.alloc(ask.reply_bytes, 'a'),
});

// --- server ---------------------------------------------------------------

function serve(args) {
  const log = fs.openSync(args.log, 'a');

  function begin(call, method) {
    const id = String(call.metadata.get('x-call-id')[0] ?? '');
    const record = new Record(log, 'server', id, method);
    record.traceparent = call.metadata.get('traceparent').join(',');
    call.on('cancelled', () => record.finish(grpc.status.CANCELLED, ''));
    return record;
  }
  const failure = (ask) => ({ code: ask.code, details: ask.message });

  async function reply(record, ask, n, callback) {
    if (ask.delay_ms) await sleep(ask.delay_ms);
    if (record.done) return;
    if (ask.code) {
      record.finish(ask.code, ask.message);
      callback(failure(ask));
    } else {
      record.sent = 1;
      record.finish(grpc.status.OK, '');
      callback(null, answer(ask, n));
    }
  }

  function endStream(record, ask, call) {
    if (record.done) return;
    if (ask.code) {
      record.finish(ask.code, ask.message);
      call.emit('error', failure(ask));
    } else {
      record.finish(grpc.status.OK, '');
      call.end();
    }
  }

  const handlers = {
    Unary(call, callback) {
      const record = begin(call, 'Unary');
      record.received = 1;
      reply(record, call.request, 0, callback);
    },

    async ServerStream(call) {
      const record = begin(call, 'ServerStream');
      const ask = call.request;
      record.received = 1;
      if (ask.delay_ms) await sleep(ask.delay_ms);
      for (let n = 0; n < ask.replies && !record.done; n++) {
        if (n && ask.gap_ms) await sleep(ask.gap_ms);
        if (record.done) return;
        record.sent++;
        call.write(answer(ask, n));
      }
      endStream(record, ask, call);
    },

    ClientStream(call, callback) {
      const record = begin(call, 'ClientStream');
      let last = { id: '', code: 0, delay_ms: 0, reply_bytes: 0 };
      call.on('data', (ask) => {
        record.received++;
        last = ask;
      });
      call.on('error', () => record.finish(grpc.status.CANCELLED, ''));
      call.on('end', () => reply(record, last, record.received, callback));
    },

    Bidi(call) {
      const record = begin(call, 'Bidi');
      let last = { code: 0 };
      let answers = Promise.resolve();
      call.on('data', (ask) => {
        record.received++;
        last = ask;
        answers = answers.then(async () => {
          if (ask.delay_ms) await sleep(ask.delay_ms);
          if (record.done) return;
          record.sent++;
          call.write(answer(ask, record.sent - 1));
        });
      });
      call.on('error', () => record.finish(grpc.status.CANCELLED, ''));
      call.on('end', async () => {
        await answers;
        endStream(record, last, call);
      });
    },
  };

  const server = new grpc.Server(LIMITS);
  server.addService(Exercise.service, handlers);
  process.on('SIGTERM', () => {
    server.tryShutdown(() => process.exit(0));
    setTimeout(() => {
      server.forceShutdown();
      process.exit(0);
    }, 1000);
  });
  server.bindAsync(
    args.listen,
    serverCredentials(),
    (error) => {
      if (error) throw error;
      console.log('listening');
    },
  );
}

// --- TLS ------------------------------------------------------------------

// If EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem;
// EXERCISE_MUTUAL_TLS has the client show its certificate too.
const TLS = process.env.EXERCISE_TLS;
const MUTUAL = Boolean(process.env.EXERCISE_MUTUAL_TLS);

function pem(name) {
  return fs.readFileSync(path.join(TLS, name));
}

function serverCredentials() {
  if (!TLS) return grpc.ServerCredentials.createInsecure();
  const own = { private_key: pem('key.pem'), cert_chain: pem('cert.pem') };
  return grpc.ServerCredentials.createSsl(pem('ca.pem'), [own], MUTUAL);
}

function channelCredentials() {
  if (!TLS) return grpc.credentials.createInsecure();
  const own = MUTUAL ? [pem('key.pem'), pem('cert.pem')] : [null, null];
  return grpc.credentials.createSsl(pem('ca.pem'), ...own);
}

// --- client ---------------------------------------------------------------

const BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';

function filler(length) {
  let text = '';
  for (const byte of crypto.randomBytes(length)) text += BASE32[byte & 31];
  return text;
}

// What call number n of a scenario is: its kind, asks and options.
function plan(scenario, n) {
  const kind = scenario === 'mixed' ? MIXED[n % MIXED.length] : scenario;
  const id = `${LANG}-${scenario}-${n}-${process.pid}`;
  const ask = { id, reply_bytes: 64, payload: Buffer.alloc(64, 'q') };
  const it = { id, ask, method: 'Unary', asks: 1, gap: 0, options: {} };
  it.metadata = new grpc.Metadata();
  it.metadata.set('x-call-id', id);
  switch (kind) {
    case 'errors':
      ask.code = n % 17;
      ask.message = `expected failure ${n}: naïve % text`;
      break;
    case 'server-stream':
      it.method = 'ServerStream';
      Object.assign(ask, { replies: 3, gap_ms: 5 });
      if (n % 4 === 3) {
        ask.code = grpc.status.ABORTED;
        ask.message = `expected failure ${n}: naïve % text`;
      }
      break;
    case 'client-stream':
      Object.assign(it, { method: 'ClientStream', asks: 4, gap: 2 });
      break;
    case 'bidi':
      Object.assign(it, { method: 'Bidi', asks: 3 });
      break;
    case 'cancel':
      Object.assign(it, { method: 'ServerStream', cancel: true });
      Object.assign(ask, { replies: 1000, gap_ms: 5 });
      break;
    case 'deadline':
      ask.delay_ms = 400;
      it.timeout = 60;
      break;
    case 'large':
      ask.reply_bytes = 4 * MIB;
      ask.payload = Buffer.alloc(4 * MIB, 'q');
      break;
    case 'metadata':
      it.metadata.set('x-filler', filler(16_000));
      break;
  }
  return it;
}

function makeCall(client, it, log) {
  return new Promise((resolve) => {
    const record = new Record(log, 'client', it.id, it.method);
    const options = it.timeout ? { deadline: Date.now() + it.timeout } : {};
    const finish = (code, message) => {
      record.finish(code, message);
      resolve();
    };
    const single = (error, value) => {
      if (value) record.received++;
      if (error) finish(error.code, error.details);
      else finish(grpc.status.OK, '');
    };

    if (it.method === 'Unary') {
      record.sent = 1;
      client.Unary(it.ask, it.metadata, options, single);
      return;
    }
    if (it.method === 'ClientStream') {
      const call = client.ClientStream(it.metadata, options, single);
      (async () => {
        for (let n = 0; n < it.asks && !record.done; n++) {
          if (n) await sleep(it.gap);
          call.write(it.ask);
          record.sent++;
        }
        call.end();
      })();
      return;
    }

    let call;
    let status;
    let ended = false;
    if (it.method === 'ServerStream') {
      record.sent = 1;
      call = client.ServerStream(it.ask, it.metadata, options);
    } else {
      call = client.Bidi(it.metadata, options);
    }
    const send = () => {
      if (it.method !== 'Bidi') return;
      if (record.sent === it.asks) {
        call.end();
      } else {
        record.sent++;
        call.write(it.ask);
      }
    };
    const settle = () => {
      // A call that this side gave up has no end.
      const over = ended || status?.code === grpc.status.CANCELLED;
      if (status && over) finish(status.code, status.details);
    };
    call.on('data', () => {
      record.received++;
      if (it.cancel) call.cancel();
      else send();
    });
    call.on('error', () => {}); // the status says the same
    call.on('end', () => {
      ended = true;
      settle();
    });
    call.on('status', (value) => {
      status = { code: value.code, details: value.code ? value.details : '' };
      settle();
    });
    send();
  });
}

async function runClient(args) {
  const calls = Number(args.calls);
  const log = fs.openSync(args.log, 'a');
  await sleep(Number(args['start-delay-ms']));
  const connect = () => new Exercise(
    args.target, channelCredentials(), CHANNEL_OPTIONS,
  );
  const churn = args.scenario === 'churn';
  const clients = churn
    ? []
    : Array.from({ length: Number(args.connections) }, connect);
  let next = 0;

  async function work() {
    while (next < calls) {
      const n = next++;
      const client = churn ? connect() : clients[n % clients.length];
      await makeCall(client, plan(args.scenario, n), log);
      if (churn) client.close();
    }
  }

  await Promise.all(Array.from({ length: Number(args.concurrency) }, work));
  for (const client of clients) client.close();
  process.exit(0);
}

const text = { type: 'string' };
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    listen: text,
    target: text,
    scenario: text,
    calls: text,
    log: text,
    concurrency: { type: 'string', default: '1' },
    connections: { type: 'string', default: '1' },
    'start-delay-ms': { type: 'string', default: '0' },
  },
});
const server = positionals[0] === 'server' && values.listen;
const client = positionals[0] === 'client' && values.target && values.calls &&
  SCENARIOS.includes(values.scenario);
if (!values.log || !(server || client)) {
  console.error(
    'usage: run server --listen ADDR --log FILE\n' +
      '       run client --target ADDR --scenario NAME --calls N --log FILE\n' +
      '           [--concurrency C] [--connections K] [--start-delay-ms D]',
  );
  process.exit(2);
}
if (server) serve(values);
else runClient(values);
