//! The shared page.

use core::mem::offset_of;

use husk_test_guest::layout::SHARED_PAGE;
use husk_test_guest::report::{MAGIC, Outcome, Page, state};

use super::machine::ticks;
use super::memory::{read64, write64};
use super::{Failure, wait};

fn set(offset: usize, value: u64) {
    write64(SHARED_PAGE + offset as u64, value);
}

/// Marks the page as the guest's.
pub(super) fn begin() {
    set(offset_of!(Page, entered), ticks());
    set(offset_of!(Page, magic), MAGIC);
    set_state(state::RUNNING);
}

/// One of the constants of [`state`].
pub(super) fn set_state(state: u64) {
    set(offset_of!(Page, state), state);
}

/// Waits until the host says so.
pub(super) fn wait_for_go() -> Result<(), Failure> {
    set_state(state::WAITING);
    let go = SHARED_PAGE + offset_of!(Page, go) as u64;
    wait(|| (read64(go) != 0).then_some(()))?;
    set_state(state::RUNNING);
    Ok(())
}

/// Shows that the guest lives.
pub(super) fn pulse() {
    let place = offset_of!(Page, pulse);
    set(place, read64(SHARED_PAGE + place as u64).wrapping_add(1));
}

/// Writes down what came of an order.
pub(super) fn outcome(number: usize, outcome: &Outcome) {
    let place = offset_of!(Page, results) + number * size_of::<Outcome>();
    set(place + offset_of!(Outcome, operations), outcome.operations);
    set(place + offset_of!(Outcome, bytes), outcome.bytes);
    set(place + offset_of!(Outcome, ticks), outcome.ticks);
    set(place + offset_of!(Outcome, checksum), outcome.checksum);
    set(place + offset_of!(Outcome, needs_reset), outcome.needs_reset);
    set(place + offset_of!(Outcome, completed), outcome.completed);
    set(offset_of!(Page, done), number as u64 + 1);
}

/// Writes down why an order was not done.
pub(super) fn failed(failure: Failure) {
    set(offset_of!(Page, reason), failure.reason as u64);
    set(offset_of!(Page, detail), failure.detail);
    set_state(state::FAILED);
}
