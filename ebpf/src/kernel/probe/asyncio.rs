//! asyncio: on whose behalf a call of grpcio's asyncio API is made.
//!
//! grpcio serves each call in a task of its own, and each call that is made is begun in a task that
//! grpcio starts where it was asked for. So the context that *asked* is the one that the call's context is a
//! copy of. It is believed if it is the handler's own; or if its task is awaited by the handler, or by one
//! that is: that is read in the tasks themselves, from who is to be called when a task is done.
//!
//! Bias: a task that was merely started within a request may live on beside it and work for others, so its
//! calls are ambiguous. What is not laid out as here (tasks written in Python, free threading) is not awaited.

use tracewire_common::link::{StreamKey, Unit};

use super::cpython::{self, Origin, named};
use super::grpc_core;
use crate::kernel::context;
use crate::kernel::memory::user;

/// Tasks between a handler's and the one that calls, that one included.
const AWAITERS: u32 = 5;
/// `PyObject.ob_type`, `PyTypeObject.tp_name`.
const TYPE: u64 = 8;
const TYPE_NAME: u64 = 24;
/// Members behind the head of an object.
const MEMBERS: u64 = 16;
/// `FutureObj.fut_callback0`, behind it `fut_context0` and `fut_callbacks`; the same since Python 3.7.
const CALLBACK: u64 = 24;
/// Where `TaskObj.task_context` may stand: the 16th word in Python 3.8, the 21st in 3.9.
const TASK_CONTEXT: u64 = 12 * 8;
const CONTEXT_WORDS: u64 = 10;
/// Items of a tuple.
const ITEMS: u64 = 24;
/// Members of a closure, callbacks of a future, attributes of an object that are looked at.
const CELLS: u64 = 6;
const CALLBACKS: u64 = 3;
const ATTRIBUTES: u64 = 12;

/// grpcio's task for a served call, which starts the handler's, runs in this context.
#[inline(always)]
pub fn schedules(context: &Unit, request: &StreamKey) {
    if let Some(origin) = cpython::origin(context) {
        let other = origin.schedules;
        let doubt = other != StreamKey::NONE && other != *request;
        origin.schedules = if doubt { StreamKey::DOUBT } else { *request };
    }
}

/// A context runs what reads (or else writes) messages of a served call.
#[inline(always)]
pub fn serves(context: &Unit, request: &StreamKey, reads: bool) {
    let handles = handled(context) == *request;
    match context::standing(context) {
        // Whoever reads a request is a part of the work for it; others may write to it too.
        Some(active) if active.request == *request => {
            if handles || reads {
                context::serve(context, request);
            }
        }
        // It works for several: for none.
        Some(active)
            if active.request == StreamKey::DOUBT || active.request.is_some() && grpc_core::open(&active.request) =>
        {
            context::serve(context, &StreamKey::DOUBT);
        }
        _ if handles => context::serve(context, request),
        _ => {}
    }
}

/// A context runs the handler of a served call of the blocking API, or (`only_takes`) what hands it on to a thread.
#[inline(always)]
pub fn occupies(context: &Unit, request: &StreamKey, only_takes: bool) {
    if only_takes {
        return;
    }
    let doubt = match context::standing(context) {
        Some(active) if active.request == *request => false,
        Some(active) => {
            active.request == StreamKey::DOUBT || active.request.is_some() && grpc_core::open(&active.request)
        }
        None => false,
    };
    let doubtful = StreamKey::DOUBT;
    context::serve(context, if doubt { &doubtful } else { request });
}

/// The call whose handler runs in a context: grpcio's task for the call started it. [`StreamKey::NONE`]: none.
#[inline(always)]
fn handled(context: &Unit) -> StreamKey {
    let Some(origin) = cpython::origin(context) else {
        return StreamKey::NONE;
    };
    match cpython::copied_from(origin, context.pid) {
        Some((_, from)) => from.schedules,
        None => StreamKey::NONE,
    }
}

/// On whose behalf a call of the blocking API is begun in this context: [`StreamKey::NONE`], nobody's;
/// [`StreamKey::DOUBT`], it is not certain.
#[inline(always)]
pub fn blocking(context: &Unit) -> StreamKey {
    let Some(active) = context::standing(context) else {
        return handled(context);
    };
    if active.generation == 0 || awaited(context, &active.request) {
        active.request
    } else {
        StreamKey::DOUBT
    }
}

/// The same of one of the asyncio API, which is begun in a copy of the context that asked for it.
#[inline(always)]
pub fn parent(context: &Unit) -> StreamKey {
    let asked = match cpython::origin(context) {
        Some(origin) => named(origin.of, context.pid),
        None => named(0, context.pid),
    };
    let Some(active) = context::standing(context) else {
        // A handler that calls before it reads or writes. It runs, so its context is the one that was copied.
        return handled(&asked);
    };
    // Copies keep what they were copied from, so this holds where the context that asked is gone.
    if active.generation <= 1 || awaited(&asked, &active.request) {
        active.request
    } else {
        StreamKey::DOUBT
    }
}

/// Whether the task that runs in a context is awaited by the handler of `request`, or is its task.
#[inline(always)]
fn awaited(context: &Unit, request: &StreamKey) -> bool {
    let mut context = *context;
    let mut i = 0;
    while i < AWAITERS {
        match context::standing(&context) {
            Some(active) if active.request == *request => {
                if active.generation == 0 {
                    return true;
                }
            }
            _ => return false,
        }
        let Some(origin) = cpython::origin(&context) else {
            return false;
        };
        context.id = asyncio_awaiter(context.id, context.pid, origin.of);
        if context.id == 0 {
            return false;
        }
        i += 1;
    }
    false
}

/// The context of the task that waits for the end of the one in `context`; 0: nobody is seen to.
/// A part of its own, which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asyncio_awaiter(context: u64, pid: u32, starter: u64) -> u64 {
    awaiter(context, pid, starter).unwrap_or(0)
}

#[inline(always)]
fn awaiter(context: u64, pid: u32, starter: u64) -> Option<u64> {
    let task = task(context, pid)?;
    let [callback, of, more] = user::<[u64; 3]>(task.wrapping_add(CALLBACK))?;
    if callback != 0 {
        let found = asyncio_waiter(callback, of, pid, starter);
        if found != 0 {
            return Some(found);
        }
    }
    let [count, items] = user::<[u64; 2]>(more.wrapping_add(MEMBERS))?;
    let mut n = 0;
    while n < CALLBACKS {
        if n >= count {
            break;
        }
        let pair = user::<u64>(items.wrapping_add(8 * n))?;
        let [callback, of] = user::<[u64; 2]>(pair.wrapping_add(ITEMS))?;
        let found = asyncio_waiter(callback, of, pid, starter);
        if found != 0 {
            return Some(found);
        }
        n += 1;
    }
    None
}

/// The task whose own context this is.
#[inline(always)]
fn task(context: u64, pid: u32) -> Option<u64> {
    let Origin { first, .. } = *cpython::origin(&named(context, pid))?;
    among(first, context)
}

/// Whichever of two addresses is a task with this context for its own.
#[inline(always)]
fn among(addresses: [u64; 2], context: u64) -> Option<u64> {
    let [first, second] = addresses;
    if owns(first, context) {
        return Some(first);
    }
    owns(second, context).then_some(second)
}

#[inline(always)]
fn owns(address: u64, context: u64) -> bool {
    let Some([name, rest]) = class::<[u64; 2]>(address) else {
        return false;
    };
    if name != u64::from_le_bytes(*b"_asyncio") || rest & 0xffff_ffff_ffff != u64::from_le_bytes(*b".Task\0\0\0") {
        return false;
    }
    has(address.wrapping_add(TASK_CONTEXT), CONTEXT_WORDS, context) != 0
}

/// The beginning of the name of an object's type.
#[inline(always)]
fn class<T: Copy>(object: u64) -> Option<T> {
    let class = user::<u64>(object.wrapping_add(TYPE))?;
    user::<T>(user::<u64>(class.wrapping_add(TYPE_NAME))?)
}

#[inline(always)]
fn is_tuple(object: u64) -> bool {
    match class::<u64>(object) {
        Some(name) => name & 0xffff_ffff_ffff == u64::from_le_bytes(*b"tuple\0\0\0"),
        None => false,
    }
}

/// Whether this call-back, called in this context, resumes a task.
#[inline(always)]
fn resumes(callback: u64, context: u64) -> bool {
    match user::<[u64; 2]>(callback.wrapping_add(MEMBERS)) {
        Some(members) => among(members, context).is_some(),
        None => false,
    }
}

/// The context of the task that goes on when this call-back of another task was called; 0: none is seen to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asyncio_waiter(callback: u64, context: u64, pid: u32, starter: u64) -> u64 {
    // `await task`
    if resumes(callback, context) {
        return context;
    }
    let Some([first, second]) = user::<[u64; 2]>(callback.wrapping_add(MEMBERS)) else {
        return 0;
    };
    // `gather`, `wait`, `shield`: the function knows a future for which the task waits.
    let (own, closure) = function(callback);
    if own & WAITS != 0 {
        return asyncio_member(closure, 1);
    }
    let (of, _) = function(first);
    // `wait_for` before Python 3.12: functools.partial(_release_waiter, future)
    if of & RELEASES != 0 && is_tuple(second) {
        return asyncio_member(second, 0);
    }
    // `TaskGroup`, a bound method: the task in which it is used waits for it at its end.
    if of & GROUPS != 0
        && let Some(task) = task(starter, pid)
        && asyncio_knows(second, task) != 0
    {
        return starter;
    }
    0
}

/// The context of the task that is resumed by one of the futures in a tuple, or in the cells in it; 0: none is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asyncio_member(tuple: u64, cells: u32) -> u64 {
    let count = user::<u64>(tuple.wrapping_add(MEMBERS)).unwrap_or(0);
    let mut n = 0;
    while n < CELLS {
        if n >= count {
            break;
        }
        let mut object = user::<u64>(tuple.wrapping_add(ITEMS + 8 * n)).unwrap_or(0);
        if cells != 0 {
            object = user::<u64>(object.wrapping_add(MEMBERS)).unwrap_or(0);
        }
        let found = asyncio_resumed(object);
        if found != 0 {
            return found;
        }
        n += 1;
    }
    0
}

/// The context of the task that a future resumes; 0: none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asyncio_resumed(future: u64) -> u64 {
    let Some([callback, context, more]) = user::<[u64; 3]>(future.wrapping_add(CALLBACK)) else {
        return 0;
    };
    if resumes(callback, context) {
        return context;
    }
    // `shield` has a call-back of its own before it.
    let Some([count, items]) = user::<[u64; 2]>(more.wrapping_add(MEMBERS)) else {
        return 0;
    };
    if count != 0
        && let Some(pair) = user::<u64>(items)
        && let Some([callback, context]) = user::<[u64; 2]>(pair.wrapping_add(ITEMS))
        && resumes(callback, context)
    {
        return context;
    }
    0
}

/// Whether an object of Python code has this among its first attributes; not 0: it has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asyncio_knows(object: u64, attribute: u64) -> u32 {
    // Its values: before it in Python 3.11, the same with a mark in 3.12, in it from 3.13.
    let Some([old, newer]) = user::<[u64; 2]>(object.wrapping_sub(32)) else {
        return 0;
    };
    let mut found = 0;
    let mut n = 0;
    while n < 3 {
        let values = match n {
            0 => object.wrapping_add(MEMBERS),
            1 => old,
            _ => newer.wrapping_add(1),
        };
        found |= has(values, ATTRIBUTES, attribute);
        n += 1;
    }
    found
}

/// Whether a word is one of `count` at an address. Word by word: programs that call each other have 512 bytes of stack
/// in all.
#[inline(always)]
fn has(at: u64, count: u64, wanted: u64) -> u32 {
    let mut found = 0;
    let mut n = 0;
    while n < count {
        found |= u32::from(user::<u64>(at.wrapping_add(8 * n)) == Some(wanted));
        n += 1;
    }
    found
}

/// What one of asyncio's own functions is for.
const WAITS: u32 = 1;
const RELEASES: u32 = 2;
const GROUPS: u32 = 4;

/// Which of asyncio's own functions an object is, and its closure.
#[inline(always)]
fn function(object: u64) -> (u32, u64) {
    let word = |n: u64| user::<u64>(object.wrapping_add(8 * n)).unwrap_or(0);
    // `func_closure` and `func_qualname` of Python 3.8 and 3.9; then code, a tuple never, stands in its place.
    let closure = word(6);
    if closure != 0 && is_tuple(closure) {
        return (asyncio_named(word(13)), closure);
    }
    // Where there is no closure, the older place is only known by the name.
    (asyncio_named(word(5)) | asyncio_named(word(13)), word(9))
}

/// Whether a string is the qualified name of one of them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asyncio_named(name: u64) -> u32 {
    // The text begins at 48, from Python 3.12 at 40.
    let Some(text) = user::<[u64; 6]>(name.wrapping_add(40)) else {
        return 0;
    };
    let [a, b, c, d, e, f] = text;
    let (newer, older) = ([a, b, c, d, e], [b, c, d, e, f]);
    let mut which = 0;
    macro_rules! known {
        ($name:literal, $which:expr) => {
            const WORDS: ([u64; 5], [u64; 5]) = words($name);
            if same(&newer, &WORDS) || same(&older, &WORDS) {
                which |= $which;
            }
        };
    }
    {
        known!(b"gather.<locals>._done_callback\0", WAITS);
    }
    {
        known!(b"_gather.<locals>._done_callback\0", WAITS);
    }
    {
        known!(b"_wait.<locals>._on_completion\0", WAITS);
    }
    {
        known!(b"shield.<locals>._inner_done_callback\0", WAITS);
    }
    {
        known!(b"_release_waiter\0", RELEASES);
    }
    {
        known!(b"TaskGroup._on_task_done\0", GROUPS);
    }
    which
}

/// A text as words, and which of their bits count.
const fn words(text: &[u8]) -> ([u64; 5], [u64; 5]) {
    let (mut value, mut mask) = ([0; 5], [0; 5]);
    let mut n = 0;
    while n < text.len() {
        value[n / 8] |= (text[n] as u64) << (8 * (n % 8));
        mask[n / 8] |= 0xff << (8 * (n % 8));
        n += 1;
    }
    (value, mask)
}

#[inline(always)]
fn same(text: &[u64; 5], (value, mask): &([u64; 5], [u64; 5])) -> bool {
    let mut other = 0;
    let mut n = 0;
    while n < 5 {
        other |= (text[n] ^ value[n]) & mask[n];
        n += 1;
    }
    other == 0
}
