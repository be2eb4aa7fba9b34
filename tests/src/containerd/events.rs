//! What containerd tells of tasks while it happens.

use serde_json::Value;

use super::Containerd;
use crate::Running;

/// A `ctr events`, which has begun to listen.
pub struct Events<'h> {
    running: Running<'h>,
}

/// One event of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The last part of its topic, such as `exec-added` of `/tasks/exec-added`.
    pub topic: String,
    /// What it tells.
    pub body: Value,
}

impl Event {
    /// Whether it tells of the end of a container's first process.
    pub fn is_end(&self) -> bool {
        self.topic == "exit" && self.body["id"] == self.body["container_id"]
    }
}

impl<'h> Events<'h> {
    pub(super) fn listen(containerd: &Containerd<'h>) -> Self {
        let (husk, words) = containerd.ctr(["events"]);
        let mut running = husk.start_command(words);
        // Nothing tells that it listens but an event: the namespace's label makes one.
        for attempt in 0..100 {
            let label = format!("attempt={attempt}");
            containerd.run(["namespaces", "label", "default", &label]).exits(0);
            running.let_pass(std::time::Duration::from_millis(200));
            if running.output().contains("/namespaces/update") {
                return Self { running };
            }
        }
        panic!("no event comes: {running}");
    }

    /// Waits for an event of a container, or of an exec in it, and gives all of that container's with it as the last.
    #[track_caller]
    pub fn until(&mut self, id: &str, is_last: impl Fn(&Event) -> bool) -> Vec<Event> {
        loop {
            let mut seen = self.of(id);
            if let Some(last) = seen.iter().position(&is_last) {
                seen.truncate(last + 1);
                return seen;
            }
            self.running.await_more_output();
        }
    }

    /// Waits for the end of a container's first process and gives its exit status.
    #[track_caller]
    pub fn until_end(&mut self, id: &str) -> i64 {
        let seen = self.until(id, Event::is_end);
        seen.last()
            .and_then(|end| end.body["exit_status"].as_i64())
            .unwrap_or_default()
    }

    fn of(&self, id: &str) -> Vec<Event> {
        let output = self.running.output();
        // A line that is not whole yet is no event yet.
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| parse(line, id)).collect()
    }
}

/// `2026-11-27 07:00:00.1 +0000 UTC default /tasks/start {"container_id":"box","pid":7}`; a line may end with spaces.
fn parse(line: &str, id: &str) -> Option<Event> {
    let (_, event) = line.split_once(" /tasks/")?;
    let (topic, body) = event.split_once(' ')?;
    let body: Value = serde_json::from_str(body).ok()?;
    (body["container_id"] == id).then(|| Event {
        topic: topic.to_owned(),
        body,
    })
}
