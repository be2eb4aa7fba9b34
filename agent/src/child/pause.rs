//! A process that does nothing but hold a container's namespaces: what others bring a program and an image for.

use nix::sys::signal::{SigSet, Signal};

use super::{ChildError, step};
use crate::sys;

/// Waits until it is asked to end, and reaps what comes to it: in a pod whose containers share its pid namespace it is
/// their first process.
pub(super) fn pause() -> Result<std::convert::Infallible, ChildError> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    // Blocked, so that they are kept though this may be a namespace's first process, which gets none by default.
    signals.thread_block().map_err(step("blocking signals"))?;
    nix::sys::prctl::set_name(c"pause").map_err(step("naming the process"))?;
    // The end of the channel is what the agent takes for its execution.
    sys::close_all_but(&[0, 1, 2]).map_err(step("closing descriptors"))?;
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => while sys::reap().is_some() {},
            Ok(_) => sys::exit_now(0),
            Err(_) => {}
        }
    }
}
