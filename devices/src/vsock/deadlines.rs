//! Deadlines of many waiting things on one timer.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

use tracing::error;
use vmm_sys_util::timerfd::TimerFd;

use super::Token;

/// At most one deadline for each token.
pub(super) struct Deadlines {
    timer: TimerFd,
    /// When the timer will fire, if it is running.
    armed: Option<Instant>,
    by_token: HashMap<Token, Instant>,
    by_time: BTreeSet<(Instant, Token)>,
}

impl Deadlines {
    /// No deadlines.
    ///
    /// # Errors
    /// There is no descriptor left for the timer.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            timer: TimerFd::new()?,
            armed: None,
            by_token: HashMap::new(),
            by_time: BTreeSet::new(),
        })
    }

    /// The timer, to be watched for edges: it is never read.
    pub(super) fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Gives the token this deadline instead of the one that it had.
    pub(super) fn set(&mut self, token: Token, deadline: Instant) {
        self.clear(token);
        self.by_token.insert(token, deadline);
        self.by_time.insert((deadline, token));
        self.arm();
    }

    /// Takes the token's deadline away, if it had one. The timer is left as it is: firing for nothing costs less than
    /// setting it for each connection.
    pub(super) fn clear(&mut self, token: Token) {
        if let Some(deadline) = self.by_token.remove(&token) {
            self.by_time.remove(&(deadline, token));
        }
    }

    /// Takes away all deadlines that have passed, and returns their tokens; called when the timer fired.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Token> {
        self.armed = None;
        let mut tokens = Vec::new();
        while let Some((deadline, token)) = self.by_time.first().copied()
            && deadline <= now
        {
            self.clear(token);
            tokens.push(token);
        }
        self.arm();
        tokens
    }

    /// Moves all deadlines by the time in which nothing could happen.
    pub(super) fn postpone(&mut self, by: Duration) {
        for deadline in self.by_token.values_mut() {
            *deadline += by;
        }
        self.by_time = self
            .by_token
            .iter()
            .map(|(token, deadline)| (*deadline, *token))
            .collect();
        self.armed = None;
        self.arm();
    }

    /// Sets the timer if it would fire too late for the first deadline.
    fn arm(&mut self) {
        let Some((first, _)) = self.by_time.first().copied() else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= first) {
            return;
        }
        // A time of zero would stop the timer.
        let rest = first
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        match self.timer.reset(rest, None) {
            Ok(()) => self.armed = Some(first),
            Err(error) => error!(%error, "the timer of the vsock device cannot be set"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_passed_expires_and_in_order() {
        let mut deadlines = Deadlines::new().unwrap();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        deadlines.set(1, at(3));
        deadlines.set(2, at(1));
        deadlines.set(3, at(2));
        deadlines.set(4, at(1));
        deadlines.set(4, at(9));
        deadlines.clear(3);
        assert_eq!(deadlines.expired(at(3)), [2, 1]);
        deadlines.postpone(Duration::from_secs(10));
        assert!(deadlines.expired(at(18)).is_empty());
        assert_eq!(deadlines.expired(at(19)), [4]);
    }

    #[test]
    fn the_timer_fires_for_the_first() {
        let mut deadlines = Deadlines::new().unwrap();
        deadlines.set(1, Instant::now() + Duration::from_secs(3600));
        deadlines.set(2, Instant::now() + Duration::from_millis(5));
        assert_eq!(deadlines.timer.wait().unwrap(), 1);
        assert_eq!(deadlines.expired(Instant::now()), [2]);
        assert!(deadlines.timer.is_armed().unwrap(), "armed again for what is left");
    }
}
