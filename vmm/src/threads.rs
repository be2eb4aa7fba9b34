//! Threads whose failure ends the machine with a report instead of in silence.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use husk_vmm_config::End;

use crate::ending::Ending;

/// Enough for every thread here; only touched pages cost memory.
const STACK: usize = 256 << 10;

/// Starts a thread. An error that it returns, or a panic, is the machine's end.
///
/// # Errors
/// The thread cannot be started.
pub fn spawn<E: Error>(
    name: String,
    ending: &Arc<Ending>,
    work: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let ending = Arc::clone(ending);
    Builder::new().name(name.clone()).stack_size(STACK).spawn(move || {
        // Nothing of what the work owns is looked at after a panic.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => ending.fail(&error),
            Err(panic) => ending.end(End::Failed {
                reason: format!("the thread {name} panicked: {}", panic_text(panic.as_ref())),
            }),
        }
    })
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(work: impl FnOnce() -> Result<(), std::io::Error> + Send + 'static) -> Option<End> {
        let ending = Arc::new(Ending::new().unwrap());
        spawn("worker".into(), &ending, work).unwrap().join().unwrap();
        ending.get()
    }

    #[test]
    fn errors_and_panics_end_the_machine() {
        assert_eq!(end_of(|| Ok(())), None);
        let reason = |end| match end {
            Some(End::Failed { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(end_of(|| Err(std::io::Error::other("broken")))), "broken");
        let panicked = reason(end_of(|| panic!("number {}", 7)));
        assert_eq!(panicked, "the thread worker panicked: number 7");
    }
}
