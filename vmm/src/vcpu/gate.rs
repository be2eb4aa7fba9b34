//! The gate that every vCPU passes before it enters the guest, and whenever it was told to leave it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    Leave,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// vCPUs that stand at the gate.
    waiting: usize,
    /// vCPUs whose threads are done.
    gone: usize,
}

/// How a vCPU came through the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It was open.
    Open,
    /// It was closed for a while.
    Held,
    /// The vCPU is to end.
    Dismissed,
}

/// What all vCPUs of a machine are to do.
#[derive(Debug)]
pub struct Gate {
    vcpus: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// An open gate for `vcpus` vCPUs.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            vcpus,
            state: Mutex::new(State {
                order: Order::Run,
                waiting: 0,
                gone: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// For a vCPU: waits while the gate is closed.
    pub fn pass(&self) -> Passage {
        let mut state = self.lock();
        let mut passage = Passage::Open;
        if state.order == Order::Pause {
            passage = Passage::Held;
            state.waiting += 1;
            self.changed.notify_all();
            while state.order == Order::Pause {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting -= 1;
        }
        if state.order == Order::Leave {
            Passage::Dismissed
        } else {
            passage
        }
    }

    /// For a vCPU: its thread is done.
    pub fn done(&self) {
        self.lock().gone += 1;
        self.changed.notify_all();
    }

    /// Closes the gate. Each vCPU comes to it when it is kicked next.
    pub fn close(&self) {
        self.order(Order::Pause);
    }

    /// Opens the gate again.
    pub fn open(&self) {
        self.order(Order::Run);
    }

    /// Sends every vCPU home that comes to the gate; final.
    pub fn dismiss(&self) {
        self.order(Order::Leave);
    }

    fn order(&self, order: Order) {
        let mut state = self.lock();
        if state.order != Order::Leave {
            state.order = order;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until no vCPU is in the guest; false if that took longer than `limit`.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.waiting + state.gone >= self.vcpus)
    }

    /// Waits until all vCPUs' threads are done; false if that took longer than `limit`.
    pub fn wait_done(&self, limit: Duration) -> bool {
        self.wait(limit, |state| state.gone >= self.vcpus)
    }

    fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        done(&state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_closed_gate_holds_vcpus_until_it_opens() {
        let gate = Arc::new(Gate::new(1));
        assert_eq!(gate.pass(), Passage::Open);
        gate.close();
        assert!(!gate.wait_closed(SHORT));
        let vcpu = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass()
        });
        assert!(gate.wait_closed(LONG));
        gate.open();
        assert_eq!(vcpu.join().unwrap(), Passage::Held);
    }

    #[test]
    fn dismissal_is_final_and_frees_those_who_wait() {
        let gate = Arc::new(Gate::new(2));
        gate.close();
        let vcpus = [(); 2].map(|()| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                let passage = gate.pass();
                gate.done();
                passage
            })
        });
        assert!(gate.wait_closed(LONG));
        assert!(!gate.wait_done(SHORT));
        gate.dismiss();
        gate.open();
        assert!(gate.wait_done(LONG));
        for vcpu in vcpus {
            assert_eq!(vcpu.join().unwrap(), Passage::Dismissed);
        }
        assert_eq!(gate.pass(), Passage::Dismissed);
    }

    #[test]
    fn a_vcpu_whose_thread_is_done_counts_as_out_of_the_guest() {
        let gate = Gate::new(1);
        gate.done();
        gate.close();
        assert!(gate.wait_closed(SHORT));
    }
}
