//! The events of the guest, for those who ask what has happened since they last asked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use husk_protocol::agent::{Event, EventsResponse};

use crate::container::Reply;

/// How many events are kept for those who ask late.
const KEPT: usize = 4096;
/// How long a question waits for an event.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has happened, and who wants to know what comes next.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    events: VecDeque<Event>,
    last: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    reply: Reply,
    after: u64,
    deadline: Instant,
}

impl Journal {
    /// Takes an event in and gives it its number.
    pub(crate) fn record(&mut self, mut event: Event) {
        self.last += 1;
        event.sequence = self.last;
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The events after a number; none yet when there is nothing to tell, and then the question is kept.
    pub(crate) fn ask(&mut self, after: u64, reply: Reply, now: Instant) -> Option<EventsResponse> {
        let answer = self.after(after);
        if answer.events.is_empty() {
            self.waiting.push(Waiting {
                reply,
                after,
                deadline: now + PATIENCE,
            });
            return None;
        }
        Some(answer)
    }

    /// The questions that can be answered now: because there is something to tell, or because their time is up.
    pub(crate) fn answers(&mut self, now: Instant) -> Vec<(Reply, EventsResponse)> {
        let last = self.last;
        let ready: Vec<_> = self
            .waiting
            .extract_if(.., |waiting| waiting.after < last || waiting.deadline <= now)
            .collect();
        ready
            .into_iter()
            .map(|waiting| (waiting.reply, self.after(waiting.after)))
            .collect()
    }

    /// How many questions wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When the first question's time is up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }

    /// Forgets the questions of a connection that is gone.
    pub(crate) fn forget(&mut self, connection: u64) {
        self.waiting.retain(|waiting| waiting.reply.connection != connection);
    }

    fn after(&self, after: u64) -> EventsResponse {
        EventsResponse {
            events: self
                .events
                .iter()
                .filter(|event| event.sequence > after)
                .cloned()
                .collect(),
            ..EventsResponse::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: Reply = Reply {
        connection: 1,
        stream: 1,
    };

    fn sequences(answer: &EventsResponse) -> Vec<u64> {
        answer.events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn a_question_is_answered_at_once_or_with_the_next_event() {
        let now = Instant::now();
        let mut journal = Journal::default();
        assert!(journal.ask(0, REPLY, now).is_none());
        assert!(journal.answers(now).is_empty());
        journal.record(Event::default());
        journal.record(Event::default());
        let answers = journal.answers(now);
        assert_eq!(answers.len(), 1);
        assert_eq!(sequences(&answers[0].1), [1, 2]);
        assert_eq!(sequences(&journal.ask(1, REPLY, now).unwrap()), [2]);
        assert!(journal.ask(2, REPLY, now).is_none());
    }

    #[test]
    fn a_question_does_not_wait_for_ever() {
        let now = Instant::now();
        let mut journal = Journal::default();
        journal.ask(0, REPLY, now);
        assert_eq!(journal.deadline(), Some(now + PATIENCE));
        let answers = journal.answers(now + PATIENCE);
        assert!(answers.len() == 1 && answers[0].1.events.is_empty());
        assert_eq!(journal.deadline(), None);
        journal.ask(0, REPLY, now);
        journal.forget(1);
        assert_eq!(journal.waiting(), 0);
    }

    #[test]
    fn the_oldest_events_are_forgotten_first() {
        let mut journal = Journal::default();
        for _ in 0..=KEPT {
            journal.record(Event::default());
        }
        let answer = journal.ask(0, REPLY, Instant::now()).unwrap();
        assert_eq!((answer.events.len(), answer.events[0].sequence), (KEPT, 2));
    }
}
