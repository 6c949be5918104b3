//! `quorate-sim guarantees`: writes docs/guarantees.md to standard output.

use std::process::ExitCode;

pub(crate) fn run() -> ExitCode {
    print!("{}", sim::guarantees::page());
    ExitCode::SUCCESS
}
