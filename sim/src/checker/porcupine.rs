//! Histories for Porcupine, the referee of our own checker: `sim/porcupine` reads them.
//!
//! One line of JSON for each key that promises to be linearizable, before anything was resolved, with
//! our verdict. Keys with a time to live are left out: Porcupine's model knows no time.

use std::io;

use serde_json::json;

use super::{
    Context,
    key::KeyHistory,
    linearizable::{self, Verdict},
    register::{Access, PENDING, Register},
};
use crate::history::Operation;

/// Writes the registers of a history, and returns how many there are.
pub fn write(
    history: &[Operation],
    context: &Context,
    to: &mut impl io::Write,
) -> io::Result<usize> {
    let mut written = 0;
    for key in KeyHistory::all(history) {
        if !linearizable::is_promised(key.discipline) {
            continue;
        }
        let register = Register::of(&key, context);
        if register.absent_from.iter().skip(1).any(|it| *it != PENDING) {
            continue;
        }
        serde_json::to_writer(&mut *to, &line(&key, &register, context))?;
        to.write_all(b"\n")?;
        written += 1;
    }
    Ok(written)
}

fn line(key: &KeyHistory<'_>, register: &Register<'_>, context: &Context) -> serde_json::Value {
    let steps = register.steps.iter().map(|it| {
        let (kind, state) = match it.access {
            Access::Write(state) => ("write", state),
            Access::Read(state) => ("read", state),
        };
        let ret = (it.ret != PENDING).then_some(it.ret);
        json!({ "do": kind, "state": state, "call": it.call, "return": ret })
    });
    let verdict = match linearizable::judge(register, context.states_max) {
        Verdict::Linearizable => "linearizable",
        Verdict::Violated(_) => "violated",
        Verdict::Undecided(_) => "undecided",
    };
    json!({ "key": key.name, "verdict": verdict, "steps": steps.collect::<Vec<_>>() })
}
