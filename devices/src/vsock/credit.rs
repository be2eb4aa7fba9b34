//! Flow control: how much each side may send before the other has taken out what it got (section 5.10.6.3).

use std::num::Wrapping;

/// The most that is sent without the guest's confirmation, whatever it offers. It keeps the distance of the counters
/// far below half of their range, so that an old count is told from an invented one.
const MAX_UNCONFIRMED: u32 = 1 << 30;

/// Why a packet breaks the rules of flow control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CreditError {
    /// The guest confirms more than it was sent.
    Invented,
    /// The guest sends more than the advertised window holds.
    Overrun,
}

/// The counters of one connection, for both directions. Counts of bytes wrap at 2^32, as on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    /// Sent to the guest.
    sent: Wrapping<u32>,
    /// Of these, taken out by the guest's reader, by its own word.
    confirmed: Wrapping<u32>,
    /// Size of the guest's receive buffer, by its own word.
    guest_window: u32,
    /// Size of the receive buffer that the guest may fill here.
    window: u32,
    /// Received from the guest.
    received: Wrapping<u32>,
    /// Of these, passed on to the host's socket.
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` that the guest was told last.
    announced: Wrapping<u32>,
}

impl Credit {
    /// The counters of a new connection, with a receive buffer of `window` bytes here.
    pub(super) fn new(window: u32) -> Self {
        Self {
            sent: Wrapping(0),
            confirmed: Wrapping(0),
            guest_window: 0,
            window,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
        }
    }

    /// How many bytes the guest may be sent now.
    pub(super) fn sendable(&self) -> u32 {
        let unconfirmed = (self.sent - self.confirmed).0;
        self.guest_window.min(MAX_UNCONFIRMED).saturating_sub(unconfirmed)
    }

    /// Notes that the guest was sent `len` bytes, at most [`sendable`](Self::sendable).
    pub(super) fn send(&mut self, len: u32) {
        debug_assert!(len <= self.sendable());
        self.sent += len;
    }

    /// Takes over the counters of a packet from the guest.
    ///
    /// A guest's packets may overtake each other between the reading of the counter and the queue, so a count that lies
    /// behind the known one is old and is ignored; one that lies before what was sent is a lie.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditError> {
        let news = Wrapping(fwd_cnt) - self.confirmed;
        let old = news.0 > u32::MAX / 2;
        if !old {
            if news > self.sent - self.confirmed {
                return Err(CreditError::Invented);
            }
            self.confirmed += news;
        }
        self.guest_window = buf_alloc;
        Ok(())
    }

    /// Takes in `len` bytes from the guest.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), CreditError> {
        let held = (self.received - self.forwarded).0;
        if len > self.window.saturating_sub(held) {
            return Err(CreditError::Overrun);
        }
        self.received += len;
        Ok(())
    }

    /// Notes that `len` of the received bytes were passed on.
    pub(super) fn forward(&mut self, len: u32) {
        debug_assert!(len <= (self.received - self.forwarded).0);
        self.forwarded += len;
    }

    /// The counters for a packet to the guest: `buf_alloc` and `fwd_cnt`.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.window, self.forwarded.0)
    }

    /// Whether the guest should be told of free space: it knows of less than half of the window and there is more.
    pub(super) fn announcement_due(&self) -> bool {
        let used_for_guest = (self.received - self.announced).0;
        self.forwarded != self.announced && used_for_guest > self.window / 2
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_may_be_sent_before_the_guest_offers_space() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.sendable(), 0);
        credit.update(50, 0).unwrap();
        assert_eq!(credit.sendable(), 50);
        credit.send(50);
        assert_eq!(credit.sendable(), 0);
        credit.update(50, 20).unwrap();
        assert_eq!(credit.sendable(), 20);
        credit.update(10, 20).unwrap();
        assert_eq!(credit.sendable(), 0, "a window that shrank below what is under way");
    }

    #[test]
    fn a_confirmation_of_more_than_was_sent_is_a_lie() {
        let mut credit = Credit::new(100);
        credit.update(50, 0).unwrap();
        credit.send(10);
        assert_eq!(credit.update(50, 11), Err(CreditError::Invented));
        assert_eq!(credit.update(50, 10), Ok(()));
    }

    #[test]
    fn an_old_confirmation_is_ignored() {
        let mut credit = Credit::new(100);
        credit.update(50, 0).unwrap();
        credit.send(30);
        credit.update(50, 30).unwrap();
        credit.update(50, 10).unwrap();
        assert_eq!(credit.sendable(), 50);
    }

    #[test]
    fn an_enormous_window_is_not_filled() {
        let mut credit = Credit::new(100);
        credit.update(u32::MAX, 0).unwrap();
        assert_eq!(credit.sendable(), MAX_UNCONFIRMED);
        credit.send(MAX_UNCONFIRMED);
        assert_eq!(credit.sendable(), 0);
    }

    #[test]
    fn the_guest_is_told_when_half_of_the_window_looks_full_to_it() {
        let mut credit = Credit::new(100);
        credit.receive(50).unwrap();
        credit.forward(50);
        assert!(!credit.announcement_due());
        credit.receive(1).unwrap();
        assert!(credit.announcement_due());
        assert_eq!(credit.announce(), (100, 50));
        assert!(!credit.announcement_due());
    }

    /// A step of the peer or of ourselves.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Send(u32),
        GuestTakes(u32),
        GuestTells,
        GuestTellsOld(u32),
        GuestResizes(u32),
        Receive(u32),
        Forward(u32),
        Announce,
    }

    fn step() -> impl Strategy<Value = Step> {
        let amount = 0..200_000_u32;
        prop_oneof![
            amount.clone().prop_map(Step::Send),
            amount.clone().prop_map(Step::GuestTakes),
            Just(Step::GuestTells),
            amount.clone().prop_map(Step::GuestTellsOld),
            amount.clone().prop_map(Step::GuestResizes),
            amount.clone().prop_map(Step::Receive),
            amount.prop_map(Step::Forward),
            Just(Step::Announce),
        ]
    }

    /// The same in 64 bits, where nothing wraps.
    #[derive(Default)]
    struct Model {
        sent: u64,
        taken: u64,
        told_taken: u64,
        guest_window: u64,
        told_window: u64,
        received: u64,
        forwarded: u64,
        announced: u64,
    }

    proptest! {
        #[test]
        fn counters_agree_with_a_model_that_never_wraps(
            start in any::<u32>(),
            steps in proptest::collection::vec(step(), 1..300),
        ) {
            const WINDOW: u32 = 256 << 10;
            let mut credit = Credit::new(WINDOW);
            // Any point of the counters' circle is as good as zero.
            for counter in [&mut credit.sent, &mut credit.confirmed, &mut credit.received, &mut credit.forwarded,
                            &mut credit.announced] {
                *counter = Wrapping(start);
            }
            let mut model = Model::default();
            #[allow(clippy::cast_possible_truncation)]
            let wire = |count: u64| start.wrapping_add(count as u32);
            for step in steps {
                match step {
                    Step::Send(len) => {
                        let len = len.min(credit.sendable());
                        credit.send(len);
                        model.sent += u64::from(len);
                        prop_assert!(model.sent - model.told_taken <= model.told_window || len == 0);
                    }
                    Step::GuestTakes(len) => model.taken += u64::from(len).min(model.sent - model.taken),
                    Step::GuestTells => {
                        model.told_taken = model.taken;
                        model.told_window = model.guest_window;
                        #[allow(clippy::cast_possible_truncation)]
                        credit.update(model.guest_window as u32, wire(model.taken)).unwrap();
                    }
                    Step::GuestTellsOld(age) => {
                        let old = model.taken.saturating_sub(u64::from(age));
                        model.told_taken = model.told_taken.max(old);
                        model.told_window = model.guest_window;
                        #[allow(clippy::cast_possible_truncation)]
                        credit.update(model.guest_window as u32, wire(old)).unwrap();
                    }
                    Step::GuestResizes(window) => model.guest_window = u64::from(window),
                    Step::Receive(len) => {
                        let fits = model.received - model.forwarded + u64::from(len) <= u64::from(WINDOW);
                        prop_assert_eq!(credit.receive(len).is_ok(), fits);
                        if fits {
                            model.received += u64::from(len);
                        }
                    }
                    Step::Forward(len) => {
                        let len = u64::from(len).min(model.received - model.forwarded);
                        #[allow(clippy::cast_possible_truncation)]
                        credit.forward(len as u32);
                        model.forwarded += len;
                    }
                    Step::Announce => {
                        model.announced = model.forwarded;
                        prop_assert_eq!(credit.announce(), (WINDOW, wire(model.forwarded)));
                    }
                }
                let room = model.told_window.saturating_sub(model.sent - model.told_taken);
                prop_assert_eq!(u64::from(credit.sendable()), room);
                let due = model.forwarded != model.announced
                    && model.received - model.announced > u64::from(WINDOW / 2);
                prop_assert_eq!(credit.announcement_due(), due);
                prop_assert_eq!(credit.update(0, wire(model.sent + 1)), Err(CreditError::Invented));
            }
        }
    }
}
