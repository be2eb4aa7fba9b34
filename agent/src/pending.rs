//! Requests that wait for what they name: connections and disks may arrive after them.

use std::time::Instant;

use husk_protocol::agent::{CreateRequest, ExecRequest};

use crate::agent::Agent;
use crate::calls::Answer;
use crate::container::{Name, Reply};
use crate::refusal::Refusal;
use crate::stdio::{PATIENCE, Token};

const MAX_PROCESSES: usize = 4096;

/// A request that waits for its connections and its disk.
#[derive(Debug)]
pub(crate) struct Pending {
    pub deadline: Instant,
    pub name: Name,
    pub reply: Reply,
    pub tokens: [Option<Token>; 3],
    work: Work,
}

/// What is done when all is there.
#[derive(Debug)]
pub(crate) enum Work {
    Create(Box<CreateRequest>),
    Exec(Box<ExecRequest>),
    Files,
}

/// What a request waits for.
enum Missing {
    Disk(String),
    Stream,
}

impl Pending {
    /// The connection with which the process ends, if it is bound to one.
    pub(crate) fn owner(&self) -> Option<u64> {
        match &self.work {
            Work::Exec(request) if request.bound => Some(self.reply.connection),
            _ => None,
        }
    }
}

impl Agent {
    /// Does what is asked for when all is there that it needs, which may be now.
    pub(crate) fn await_needs(&mut self, name: Name, reply: Reply, tokens: [Option<Token>; 3], work: Work) -> Answer {
        if self.pids.len() + self.pending.len() >= MAX_PROCESSES {
            return Err(Refusal::Full {
                what: "processes",
                limit: MAX_PROCESSES,
            });
        }
        self.pending.push(Pending {
            deadline: Instant::now() + PATIENCE,
            name,
            reply,
            tokens,
            work,
        });
        self.advance_pending();
        Ok(None)
    }

    /// Goes on with every request that has all that it needs.
    pub(crate) fn advance_pending(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            if self.missing(&pending).is_some() {
                self.pending.push(pending);
                continue;
            }
            let begun = match &pending.work {
                Work::Create(request) => self.begin_create(&pending, request),
                Work::Exec(request) => self.begin_exec(&pending, request),
                Work::Files => self.begin_files(&pending),
            };
            if let Err(refusal) = begun {
                self.refuse(pending.reply, refusal);
            }
        }
    }

    /// Refuses requests whose needs have not been met in time.
    pub(crate) fn expire_pending(&mut self, now: Instant) {
        for pending in std::mem::take(&mut self.pending) {
            match self.missing(&pending) {
                Some(missing) if pending.deadline <= now => {
                    let refusal = match missing {
                        Missing::Disk(serial) => Refusal::NoDisk(serial),
                        Missing::Stream => Refusal::NoStream,
                    };
                    self.refuse(pending.reply, refusal);
                }
                _ => self.pending.push(pending),
            }
        }
    }

    fn missing(&mut self, pending: &Pending) -> Option<Missing> {
        if !pending.tokens.iter().flatten().all(|token| self.unclaimed.has(token)) {
            return Some(Missing::Stream);
        }
        let Work::Create(request) = &pending.work else {
            return None;
        };
        let serial = &request.root.disk;
        let there = self.images.has(serial) || self.disks.find(serial).is_some();
        (!there).then(|| Missing::Disk(serial.clone()))
    }
}
