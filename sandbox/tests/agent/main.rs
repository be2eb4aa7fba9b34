//! The host's side of a sandbox whose agent is not husk's: a fault, or an attacker who has taken over the guest.

#![allow(clippy::unwrap_used)]

mod fake;
mod hostile;
mod lifecycle;
