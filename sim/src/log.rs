//! What happened in a run, in order: hashed always, kept where somebody wants to read it.

use std::{cell::RefCell, fmt, rc::Rc, time::Duration};

use xxhash_rust::xxh3::Xxh3;

/// The log of one run. Clones share it.
#[derive(Clone)]
pub struct Log(Rc<RefCell<Inner>>);

struct Inner {
    hash: Xxh3,
    lines: Option<Vec<String>>,
    /// Those of the lines that make up the story, with their times.
    story: Vec<(Duration, String)>,
}

impl Log {
    /// An empty log, which keeps its lines or only their hash.
    pub fn new(keep: bool) -> Self {
        let lines = keep.then(Vec::new);
        Self(Rc::new(RefCell::new(Inner { hash: Xxh3::new(), lines, story: Vec::new() })))
    }

    /// Adds a line.
    pub fn say(&self, at: Duration, line: impl fmt::Display) {
        let line = format!("{:>9.3} {line}", at.as_secs_f64());
        let mut inner = self.0.borrow_mut();
        inner.hash.update(line.as_bytes());
        inner.hash.update(b"\n");
        if let Some(lines) = &mut inner.lines {
            lines.push(line);
        }
    }

    /// Adds a line that a timeline shows, too.
    pub fn tell(&self, at: Duration, line: impl fmt::Display) {
        let mut inner = self.0.borrow_mut();
        if inner.lines.is_some() {
            inner.story.push((at, line.to_string()));
        }
        drop(inner);
        self.say(at, line);
    }

    /// The hash of all lines so far.
    pub fn hash(&self) -> u64 {
        self.0.borrow().hash.digest()
    }

    /// Takes the lines, if they were kept.
    pub fn take(&self) -> Vec<String> {
        self.0.borrow_mut().lines.take().unwrap_or_default()
    }

    /// Takes what makes up the story, if lines were kept.
    pub fn take_story(&self) -> Vec<(Duration, String)> {
        std::mem::take(&mut self.0.borrow_mut().story)
    }
}
