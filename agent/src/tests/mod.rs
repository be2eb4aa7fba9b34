//! The agent as a whole, against this machine's kernel.

mod control;
mod guest;
mod limits;
mod processes;
mod surroundings;
mod terminals;
