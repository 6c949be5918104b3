//! Finds the binary under test, and runs its short-lived commands.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// The binary `quorate`: QUORATE_BIN, or the newest build in cargo's target folder.
///
/// Panics with what to do if there is none.
pub(crate) fn quorate() -> PathBuf {
    if let Some(path) = env::var_os("QUORATE_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "QUORATE_BIN names {}, which is no file", path.display());
        return path;
    }
    // This test runs from TARGET/PROFILE/deps.
    let own = env::current_exe().expect("the operating system knows the running program");
    let target = own.ancestors().nth(3).expect("cargo runs tests from its target folder");
    let builds = ["release", "debug"].map(|it| target.join(it).join("quorate"));
    let built = |path: &PathBuf| path.metadata().and_then(|it| it.modified()).ok();
    let newest = builds.into_iter().filter(|it| built(it).is_some()).max_by_key(built);
    newest.unwrap_or_else(|| {
        panic!(
            "there is no `quorate` below {}: run `make test`, which builds it, or `make release` \
             first, or let QUORATE_BIN name it",
            target.display()
        )
    })
}

/// Runs a command to its end. Its environment has none of the variables that `quorate` reads.
pub(crate) fn run(arguments: &[&str]) -> Output {
    command().args(arguments).stdin(Stdio::null()).output().expect("the binary can be run")
}

/// Runs a command that must succeed; returns its standard output.
pub(crate) fn run_ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// The binary, in an environment that tells it nothing.
pub(crate) fn command() -> Command {
    told_nothing(Command::new(quorate()))
}

/// The same, with so many open files at most.
pub(super) fn command_with_open_files(limit: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n "$0" && exec "$@""#, &limit.to_string()]).arg(quorate());
    told_nothing(command)
}

fn told_nothing(mut command: Command) -> Command {
    for name in ["QUORATE_NODE", "QUORATE_PREFER_DC", "QUORATE_LOG"] {
        command.env_remove(name);
    }
    command
}
