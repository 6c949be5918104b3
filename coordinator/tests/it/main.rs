//! The request machines from outside: told as stories, and driven at random against simulated
//! replicas with a check of the history.

mod history;
mod simulation;
mod story;
