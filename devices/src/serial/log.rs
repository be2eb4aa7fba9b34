//! What the serial port last said.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::error;
use vmm_sys_util::eventfd::EventFd;

/// How much of the output is kept, in bytes.
pub(super) const KEPT: usize = 64 << 10;

/// The end of the port's output. The vCPU writes it, the console reads it; neither waits for the other's work.
#[derive(Clone)]
pub(super) struct Log {
    text: Arc<Mutex<Text>>,
    /// Signalled when there is new text and somebody follows.
    news: Arc<EventFd>,
}

#[derive(Default)]
struct Text {
    bytes: VecDeque<u8>,
    /// The number of bytes ever written: the position behind the last.
    end: u64,
    /// Whether anybody wants to know of news.
    followed: bool,
    /// Whether `news` is signalled.
    announced: bool,
}

impl Text {
    /// The position of the first byte that is kept.
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

impl Log {
    pub(super) fn new(news: EventFd) -> Self {
        Self {
            text: Arc::default(),
            news: Arc::new(news),
        }
    }

    fn text(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn news(&self) -> &EventFd {
        &self.news
    }

    /// Whether somebody follows; news are announced from now on, or not.
    pub(super) fn follow(&self, followed: bool) {
        self.text().followed = followed;
    }

    /// To be called before the text is looked at.
    pub(super) fn acknowledge(&self) {
        // The counter's value does not matter; an error says that it is zero already.
        let _ = self.news.read();
        self.text().announced = false;
    }

    /// Copies text from `position` on into `target`; returns how much, and the position of the copy's first byte,
    /// which is later than asked for if the text there is not kept any more.
    pub(super) fn copy(&self, position: u64, target: &mut [u8]) -> (usize, u64) {
        let text = self.text();
        let position = position.clamp(text.start(), text.end);
        let skip = usize::try_from(position - text.start()).unwrap_or(KEPT);
        let mut count = 0;
        for (byte, slot) in text.bytes.range(skip..).zip(target) {
            *slot = *byte;
            count += 1;
        }
        (count, position)
    }
}

impl Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut text = self.text();
        for byte in data {
            if text.bytes.len() == KEPT {
                text.bytes.pop_front();
            }
            text.bytes.push_back(*byte);
        }
        text.end += data.len() as u64;
        if text.followed && !text.announced {
            text.announced = true;
            if let Err(error) = self.news.write(1) {
                error!(%error, "the console cannot be told of output");
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
