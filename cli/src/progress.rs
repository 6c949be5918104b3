//! Progress of what takes longer than a second, on standard error. Hidden when nobody watches.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

const REFRESH: Duration = Duration::from_millis(100);

/// A bar towards `length` bytes.
pub(crate) fn bytes_bar(output: Output, length: Option<u64>) -> ProgressBar {
    let template = match length {
        Some(_) => "{bar:32} {percent:>3}%  {bytes}/{total_bytes}  {msg}  eta {eta}",
        None => "{spinner} {bytes}  {msg}",
    };
    styled(output, length, template)
}

/// A bar towards `length` steps.
pub(crate) fn steps_bar(output: Output, length: u64) -> ProgressBar {
    styled(output, Some(length), "{bar:32} {percent:>3}%  {msg}  eta {eta}")
}

/// A spinner beside a sentence.
pub(crate) fn spinner(output: Output, message: impl Into<String>) -> ProgressBar {
    let bar = styled(output, None, "  {spinner} {msg}  {elapsed}");
    bar.set_message(message.into());
    bar.enable_steady_tick(REFRESH);
    bar
}

fn styled(output: Output, length: Option<u64>, template: &str) -> ProgressBar {
    if output.is_json() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.set_style(ProgressStyle::with_template(template).expect("the templates above are valid"));
    bar
}
