// What tracewire puts into a Node process that it was asked to (--node-helper): which request
// is being served follows the program through awaits, timers and promises (AsyncLocalStorage), and is
// told when a request goes out, by a question after a file that nobody has. A uprobe in uv_fs_access
// reads that name; without an agent it is a failed access(2).
//
// Bias: what queues requests for others (agents, pools, grpc-js's channels) is followed by the request
// itself, never by whoever empties the queue; where that can't be done, the call is said to be ambiguous.
//
// The value of the script: "in place", or why it is not.
((require) => {
  'use strict';
  const KEY = Symbol.for('tracewire.helper');
  if (globalThis[KEY]) return globalThis[KEY].resume();
  const { AsyncLocalStorage } = require('async_hooks');
  const channels = require('diagnostics_channel');
  const fs = require('fs');
  const http = require('http');
  const https = require('https');
  const http2 = require('http2');
  const { Duplex } = require('stream');
  if (!fs.existsSync || !channels.channel) return 'this version of Node lacks what is needed';

  const exists = fs.existsSync;
  const serving = new AsyncLocalStorage();
  const undo = [];
  let on = true;
  let tokens = 0;

  const hex = (n) => (n >>> 0).toString(16).padStart(8, '0');
  const tell = (kind, ...numbers) => exists(`/dev/null/tracewire/${kind}${numbers.map(hex).join('')}`);
  // Of a socket without TLS: what is encrypted has another name in the agent.
  const descriptor = (socket) => {
    if (!socket || socket.encrypted || socket.destroyed) return -1;
    const fd = socket._handle && socket._handle.fd;
    return typeof fd === 'number' && fd >= 0 ? fd : -1;
  };
  const DOUBT = 0xffffffff;
  // The two numbers that name the served request: a descriptor and a stream, or a token and 0. None: 0, 0.
  const parent = (served) => {
    if (served === DOUBT) return [DOUBT, DOUBT];
    if (!served || served.over()) return [0, 0];
    if (served.token) return [served.token, 0];
    const fd = descriptor(served.socket());
    return fd < 0 ? [0, 0] : [fd, served.stream.id];
  };

  const replace = (object, name, make) => {
    const before = Object.getOwnPropertyDescriptor(object, name);
    const original = object[name];
    if (typeof original !== 'function') return;
    const value = make(original);
    Object.defineProperty(value, 'name', { value: original.name, configurable: true });
    Object.defineProperty(object, name, { value, writable: true, configurable: true, enumerable: before ? before.enumerable : false });
    undo.push(() => {
      // What others put over it stays: it goes on to the original by way of this one, which is idle then.
      if (object[name] !== value) return;
      if (before) Object.defineProperty(object, name, before);
      else delete object[name];
    });
  };
  const safely = (work) => {
    try {
      return work();
    } catch {
      return undefined;
    }
  };

  // Served requests.
  const servedHttp1 = (request, response) => {
    const fd = descriptor(request.socket);
    if (fd < 0) return undefined;
    tokens = (tokens % 0x7fffffff) + 1;
    const token = tokens;
    tell('s', token, fd);
    return { token, over: () => !on || response.writableEnded || response.destroyed };
  };
  const servedHttp2 = (stream) => {
    const session = stream.session;
    if (!session || descriptor(session.socket) < 0) return undefined;
    const gone = () => stream.closed || stream.destroyed || session.destroyed;
    return { stream, socket: () => session.socket, over: () => !on || gone() };
  };
  const emits = (prototype) =>
    replace(prototype, 'emit', (original) => function emit(name, first, second, ...rest) {
      if (!on || (name !== 'request' && name !== 'stream')) {
        return Reflect.apply(original, this, arguments);
      }
      const served = safely(() => {
        if (name === 'stream') return servedHttp2(first);
        return first && first.httpVersionMajor === 1 ? servedHttp1(first, second) : serving.getStore();
      });
      if (served && served !== serving.getStore()) {
        // Their later events come from the connection, whose context is nobody's.
        safely(() => within(first, served));
        if (name === 'request') safely(() => within(second, served));
      }
      return serving.run(served, () => Reflect.apply(original, this, [name, first, second, ...rest]));
    });
  const within = (emitter, served) => {
    const original = emitter.emit;
    const emit = function emit(...all) {
      return on ? serving.run(served, () => Reflect.apply(original, this, all)) : Reflect.apply(original, this, all);
    };
    Object.defineProperty(emitter, 'emit', { value: emit, writable: true, configurable: true, enumerable: false });
  };
  emits(http.Server.prototype);
  emits(https.Server.prototype);
  const idle = http2.createServer();
  emits(Object.getPrototypeOf(idle));

  // Requests that are made, HTTP/1: of the context in which the request was made.
  const OF = Symbol('tracewire.of');
  const TOLD = Symbol('tracewire.told');
  const remember = (request) => {
    if (request && !(OF in request)) request[OF] = serving.getStore();
  };
  const onto = (socket, served) => {
    const fd = descriptor(socket);
    if (fd < 0) return;
    const [first, second] = parent(served && served.grpc !== undefined ? served.grpc : served);
    if (first === 0 && !socket[TOLD]) return;
    socket[TOLD] = true;
    tell('c', fd, 0, first, second);
  };
  replace(http.Agent.prototype, 'addRequest', (original) => function addRequest(request, ...rest) {
    if (on) safely(() => remember(request));
    return Reflect.apply(original, this, [request, ...rest]);
  });
  replace(http.ClientRequest.prototype, 'onSocket', (original) => function onSocket(socket, ...rest) {
    if (on) {
      safely(() => {
        remember(this);
        if (!socket) return;
        if (socket.connecting) socket.prependOnceListener('connect', () => safely(() => onto(socket, this[OF])));
        else onto(socket, this[OF]);
      });
    }
    return Reflect.apply(original, this, [socket, ...rest]);
  });
  // fetch, and undici by itself.
  const hear = (name, heard) => {
    const listener = (message) => {
      if (on) safely(() => heard(message));
    };
    const subscribe = channels.subscribe || ((n, l) => channels.channel(n).subscribe(l));
    const unsubscribe = channels.unsubscribe || ((n, l) => channels.channel(n).unsubscribe(l));
    subscribe(name, listener);
    undo.push(() => unsubscribe(name, listener));
  };
  hear('undici:request:create', ({ request }) => remember(request));
  hear('undici:client:sendHeaders', ({ request, socket }) => onto(socket, request[OF]));

  // HTTP/2. What is gRPC is believed only where grpc-js itself was followed.
  const ready = (stream, served) => {
    const session = stream.session;
    const fd = session && !session.destroyed ? descriptor(session.socket) : -1;
    if (fd < 0 || typeof stream.id !== 'number') return;
    const [first, second] = parent(served);
    if (first !== 0) tell('c', fd, stream.id, first, second);
  };
  const requests = (prototype) =>
    replace(prototype, 'request', (original) => function request(headers, ...rest) {
      const stream = Reflect.apply(original, this, [headers, ...rest]);
      if (on) {
        safely(() => {
          let served = serving.getStore();
          const type = headers && (headers['content-type'] || headers['Content-Type']);
          if (served && served.grpc !== undefined) served = served.grpc;
          else if (typeof type === 'string' && type.startsWith('application/grpc') && (served || !follows())) served = DOUBT;
          if (!served) return;
          if (typeof stream.id === 'number') ready(stream, served);
          else stream.once('ready', () => safely(() => ready(stream, served)));
        });
      }
      return stream;
    });
  const nowhere = http2.connect('http://127.0.0.1', {
    createConnection: () => new Duplex({ read() {}, write: (chunk, encoding, done) => done() }),
  });
  nowhere.on('error', () => {});
  requests(Object.getPrototypeOf(nowhere));
  nowhere.destroy();

  // grpc-js queues calls until there is a connection and tries them again: each keeps the context of its caller.
  let followed = false;
  const CALL = Symbol('tracewire.call');
  const goesOn = (prototype, name) => {
    if (!Object.prototype.hasOwnProperty.call(prototype, name) || prototype[name][CALL]) return;
    replace(prototype, name, (original) => {
      const value = function goesOn(...all) {
        return on && this[CALL] ? serving.run(this[CALL], () => Reflect.apply(original, this, all)) : Reflect.apply(original, this, all);
      };
      value[CALL] = true;
      return value;
    });
  };
  const STEPS = { createResolvingCall: 'getConfig', createRetryingCall: 'startNewAttempt', createLoadBalancingCall: 'doPick' };
  const follows = () => {
    if (followed) return true;
    for (const [path, loaded] of Object.entries(require.cache || {})) {
      if (!/grpc-js[\\/]build[\\/]src[\\/]internal-channel\.js$/.test(path)) continue;
      const prototype = loaded.exports.InternalChannel && loaded.exports.InternalChannel.prototype;
      if (!prototype || !Object.keys(STEPS).every((name) => typeof prototype[name] === 'function')) continue;
      for (const [name, step] of Object.entries(STEPS)) {
        replace(prototype, name, (original) => function made(...all) {
          const call = Reflect.apply(original, this, all);
          if (on) {
            safely(() => {
              const now = serving.getStore();
              const served = now && now.grpc !== undefined ? now.grpc : now;
              call[CALL] = { grpc: served || null };
              goesOn(Object.getPrototypeOf(call), step);
            });
          }
          return call;
        });
      }
      followed = true;
    }
    return followed;
  };
  follows();
  replace(http2, 'connect', (original) => function connect(...all) {
    if (on) safely(follows);
    return Reflect.apply(original, this, all);
  });

  const close = () => {
    // The inspector was opened for this alone.
    const inspector = require('inspector');
    setTimeout(() => safely(() => inspector.close()), 50).unref();
  };
  globalThis[KEY] = {
    resume: () => {
      on = true;
      close();
      return 'in place';
    },
    remove: () => {
      on = false;
      while (undo.length) safely(undo.pop());
      serving.disable();
      delete globalThis[KEY];
      close();
      return 'removed';
    },
  };
  close();
  return 'in place';
})
