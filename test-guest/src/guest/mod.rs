//! The guest: from ring 3's first instruction through the orders to the end.

mod attack;
mod blk;
mod machine;
mod memory;
mod page;
mod queue;
mod rng;
mod second;
mod virtio;
mod vsock;

use husk_test_guest::order::{BadOption, Order, orders};
use husk_test_guest::report::{Outcome, PATIENCE, RESULTS, Reason, state};

use machine::ticks;
use virtio::Machine;

/// Why an order is not done.
#[derive(Clone, Copy, Debug)]
struct Failure {
    reason: Reason,
    detail: u64,
}

impl Failure {
    const fn new(reason: Reason, detail: u64) -> Self {
        Self { reason, detail }
    }
}

impl From<BadOption> for Failure {
    fn from(_: BadOption) -> Self {
        Self::new(Reason::Option, 0)
    }
}

/// Where boot.s goes: in ring 3, with an identity map of the first 4 GiB. `start_info` is PVH's.
#[unsafe(no_mangle)]
extern "C" fn ring3(start_info: u64, processor: u64) -> ! {
    if processor != 0 {
        second::run();
    }
    machine::prepare();
    page::begin();
    let mut line = [0; 4096];
    let text = memory::text(memory::read64(start_info + 0x18), &mut line);
    let mut machine = Machine::new(memory_end(start_info));
    let mut number = 0;
    for order in orders(text) {
        match obey(&order, &mut machine) {
            Ok(outcome) => page::outcome(number, &outcome),
            Err(failure) => {
                page::failed(failure);
                machine::off();
            }
        }
        number += 1;
        if number > RESULTS {
            page::failed(Failure::new(Reason::TooMany, number as u64));
            machine::off();
        }
    }
    page::set_state(state::DONE);
    machine::off();
}

/// The end of the memory that the shared page lies in, from PVH's memory map.
fn memory_end(start_info: u64) -> u64 {
    let map = memory::read64(start_info + 0x28);
    let entries = u64::from(memory::read32(start_info + 0x30));
    let ranges = (0..entries).map(|index| {
        let entry = map + 24 * index;
        (memory::read64(entry), memory::read64(entry + 8))
    });
    let page = husk_test_guest::layout::SHARED_PAGE;
    let mut holding = ranges.filter(|(start, length)| (*start..start.saturating_add(*length)).contains(&page));
    holding.next().map_or(32 << 20, |(start, length)| start + length)
}

fn obey(order: &Order<'_>, machine: &mut Machine) -> Result<Outcome, Failure> {
    let start = ticks();
    let mut outcome = match order.name {
        "virtio" => {
            let [base] = order.options([("base", husk_test_guest::layout::VIRTIO)])?;
            machine.find(base);
            Outcome::default()
        }
        "wait" => {
            order.options([])?;
            page::wait_for_go()?;
            Outcome::default()
        }
        "idle" => {
            page::set_state(state::DONE);
            machine::idle()
        }
        "off" => {
            page::set_state(state::DONE);
            machine::off()
        }
        "blk-read" => blk::read(order, machine)?,
        "blk-write" => blk::write(order, machine)?,
        "rng" => rng::read(order, machine)?,
        "vsock-echo" => vsock::echo(order, machine)?,
        "vsock-stream" => vsock::stream(order, machine)?,
        name if name.starts_with("attack-") => attack::attack(order, machine)?,
        _ => return Err(Failure::new(Reason::UnknownOrder, 0)),
    };
    if outcome.ticks == 0 {
        outcome.ticks = ticks() - start;
    }
    Ok(outcome)
}

/// Polls until there is something.
fn wait<T>(mut what: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    let start = ticks();
    loop {
        if let Some(found) = what() {
            return Ok(found);
        }
        if ticks() - start > PATIENCE {
            return Err(Failure::new(Reason::Silence, 0));
        }
        core::hint::spin_loop();
    }
}
