//! The request machines from outside: told as stories, and driven at random against simulated
//! replicas with a check of the history.

#[cfg(test)]
mod history;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod story;
