//! What a failed run leaves behind: its log, and the command that shows it again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use model::Mutant;

/// The command that plays a seed, a scenario, or a scenario with the interleavings of a seed again, from
/// the checkout. Whoever tells of a failure tells this.
pub fn command(seed: Option<u64>, scenario: Option<&str>, mutant: Option<Mutant>) -> String {
    let arguments = [
        ("SCENARIO", scenario.map(str::to_owned)),
        ("SEED", seed.map(|it| it.to_string())),
        ("MUTANT", mutant.map(|it| it.as_str().to_owned())),
    ];
    let told = arguments.into_iter().filter_map(|(name, it)| it.map(|it| format!(" {name}={it}")));
    format!("make replay{}", told.collect::<String>())
}

/// The name of a seed's log.
pub fn log_name(seed: u64, mutant: Option<Mutant>) -> String {
    let with = mutant.map_or(String::new(), |it| format!("-{}", it.as_str()));
    format!("seed-{seed}{with}.log")
}

/// Writes a log into a folder, and returns where it is, or why it is not there.
pub fn keep_log(folder: &Path, name: &str, lines: &[String]) -> Result<PathBuf, String> {
    let path = folder.join(name);
    let wrong = |error: io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(folder).map_err(wrong)?;
    fs::write(&path, lines.join("\n")).map_err(wrong)?;
    Ok(path)
}

/// Says where a log is.
pub fn tell_log(kept: &Result<PathBuf, String>) -> String {
    match kept {
        Ok(path) => format!("its log: {}", path.display()),
        Err(error) => format!("its log cannot be written: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_what_is_played() {
        let mutant = Some(Mutant::HalfIsAQuorum);
        let name = Mutant::HalfIsAQuorum.as_str();
        assert_eq!(command(Some(7), None, None), "make replay SEED=7");
        assert_eq!(command(Some(7), None, mutant), format!("make replay SEED=7 MUTANT={name}"));
        assert_eq!(command(None, Some("a"), None), "make replay SCENARIO=a");
        assert_eq!(command(Some(7), Some("a"), None), "make replay SCENARIO=a SEED=7");
    }
}
