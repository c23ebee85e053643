//! When the agent's threads run. Bias: the observed services first, but never
//! so far back that the ring buffer overflows.

/// From now on this thread, and those that it makes, wait for their turn when they wake: they take no
/// processor from a thread that is running (SCHED_BATCH, sched(7)). Their share of the time stays the same.
pub fn give_way() {
    set(libc::SCHED_BATCH);
}

/// This thread is scheduled like any other again: it must look at a new process while that lives.
pub fn keep_up() {
    set(libc::SCHED_OTHER);
}

fn set(policy: libc::c_int) {
    let ordinary = libc::sched_param { sched_priority: 0 };
    // SAFETY: the calling thread (0) and a valid parameter on the stack; a refusal changes nothing.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const ordinary) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "this thread stays scheduled as it was");
    }
}
