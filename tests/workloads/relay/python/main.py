"""The relay of proto/relay.proto, with grpcio: an ordinary service without
tracing code, with the blocking API or, with --aio, the asyncio one."""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import time
from concurrent import futures

import grpc
import grpc.aio

import relay_pb2 as pb
import relay_pb2_grpc as rpc


class Log:
    """One JSON line per served call, each with one write."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if path else None

    def note(self, context, call_id):
        if self.fd is not None:
            seen = [v for k, v in context.invocation_metadata() if k == "traceparent"]
            os.write(self.fd, (json.dumps({"id": call_id, "traceparent": seen}) + "\n").encode())


class Stubs:
    """A few connections to each address that was ever called."""

    def __init__(self, connections, channel):
        self.connections, self.channel = connections, channel
        self.stubs, self.next = {}, itertools.count()

    def of(self, address):
        if address not in self.stubs:
            # A number of its own keeps the library from sharing one connection.
            self.stubs[address] = [
                rpc.RelayStub(self.channel(address, options=[("relay.number", n), ("grpc.use_local_subchannel_pool", 1)]))
                for n in range(self.connections)
            ]
        stubs = self.stubs[address]
        return stubs[next(self.next) % len(stubs)]


def onward(hop, k):
    call_id = f"{hop.id}/{k}"
    ask = pb.Hop(id=call_id, route=hop.route[1:], fan=hop.fan, delay_ms=hop.delay_ms, depth=hop.depth)
    return ask, (("x-call-id", call_id),)


def pause(hop):
    return random.random() * hop.delay_ms / 1000


class Blocking(rpc.RelayServicer):
    def __init__(self, log, connections):
        self.log, self.stubs = log, Stubs(connections, grpc.insecure_channel)

    def onwards(self, hop):
        if not hop.route:
            return 0
        fan = max(hop.fan, 1)
        if fan == 1:
            time.sleep(pause(hop))
            ask, metadata = onward(hop, 0)
            return self.stubs.of(hop.route[0]).Pass(ask, metadata=metadata).count
        calls = []
        for k in range(fan):
            time.sleep(pause(hop))
            ask, metadata = onward(hop, k)
            calls.append(self.stubs.of(hop.route[0]).Pass.future(ask, metadata=metadata))
        return sum(call.result().count for call in calls)

    def Pass(self, hop, context):
        self.log.note(context, hop.id)
        return pb.Hop(id=hop.id, count=self.onwards(hop) + 1)

    def Flow(self, hops, context):
        for hop in hops:
            yield pb.Hop(id=hop.id, count=self.onwards(hop))


class Worker:
    """Makes calls for whoever asks. The first who does starts its task, which ends after some jobs."""

    def __init__(self):
        self.jobs, self.left = None, 0

    async def work(self, jobs):
        for _ in range(24):
            job, done = await jobs.get()
            asyncio.create_task(self.finish(job, done))

    @staticmethod
    async def finish(job, done):
        try:
            done.set_result(await job)
        except Exception as error:  # noqa: BLE001, whoever waits gets it
            done.set_exception(error)

    async def do(self, job):
        if self.left == 0:
            self.left, self.jobs = 24, asyncio.Queue()
            asyncio.create_task(self.work(self.jobs))
        self.left -= 1
        done = asyncio.get_running_loop().create_future()
        self.jobs.put_nowait((job, done))
        return await done


async def gathered(works):
    return await asyncio.gather(*works)


async def waited(works):
    tasks = [asyncio.ensure_future(work) for work in works]
    await asyncio.wait(tasks)
    return [task.result() for task in tasks]


async def waited_for(works):
    return await asyncio.gather(*(asyncio.wait_for(work, 60) for work in works))


async def shielded(works):
    async def hold(work):
        return await asyncio.shield(work)

    return await asyncio.gather(*(hold(work) for work in works))


async def grouped(works):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def remembered(works):
    tasks = [asyncio.ensure_future(work) for work in works]
    for task in tasks:
        task.add_done_callback(lambda task: None)
    return await asyncio.gather(*tasks)


def ways():
    """How a handler may wait for several tasks."""
    newer = [grouped] if hasattr(asyncio, "TaskGroup") else []
    return itertools.cycle([gathered, waited, waited_for, shielded, remembered, *newer])


class Asynchronous(rpc.RelayServicer):
    def __init__(self, log, connections, worker):
        self.log, self.stubs = log, Stubs(connections, grpc.aio.insecure_channel)
        self.worker, self.ways = Worker() if worker else None, ways()

    async def onwards(self, hop):
        if not hop.route:
            return 0
        fan = max(hop.fan, 1)

        async def one(k, depth):
            if depth > 0:
                return await asyncio.create_task(one(k, depth - 1))
            await asyncio.sleep(pause(hop))
            ask, metadata = onward(hop, k)

            async def call():
                return await self.stubs.of(hop.route[0]).Pass(ask, metadata=metadata)

            return (await (self.worker.do(call()) if self.worker else call())).count

        if fan == 1:
            return await one(0, hop.depth)
        return sum(await next(self.ways)([one(k, hop.depth) for k in range(fan)]))

    async def Pass(self, hop, context):
        self.log.note(context, hop.id)
        return pb.Hop(id=hop.id, count=await self.onwards(hop) + 1)

    async def Flow(self, hops, context):
        async for hop in hops:
            yield pb.Hop(id=hop.id, count=await self.onwards(hop))


def blocking(flags):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=128), options=[("grpc.so_reuseport", 0)])
    rpc.add_RelayServicer_to_server(Blocking(Log(flags.log), flags.connections), server)
    server.add_insecure_port(flags.listen)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.start()
    print("listening", flags.listen, flush=True)
    server.wait_for_termination()


async def asynchronous(flags):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    rpc.add_RelayServicer_to_server(Asynchronous(Log(flags.log), flags.connections, flags.worker), server)
    server.add_insecure_port(flags.listen)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
    await server.start()
    print("listening", flags.listen, flush=True)
    await server.wait_for_termination()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["serve"])
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--log")
    parser.add_argument("--aio", action="store_true")
    parser.add_argument("--worker", action="store_true")
    flags = parser.parse_args()
    if flags.aio:
        asyncio.run(asynchronous(flags))
    else:
        blocking(flags)


if __name__ == "__main__":
    main()
