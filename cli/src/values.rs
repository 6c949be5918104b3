//! Values of the command line: durations, sizes, replication. Pure: text in, value or sentence out.

use std::time::Duration;

use model::NodeId;
use node::storage::rocks::RocksLimits;

/// Reads a duration such as `250ms`, `10s`, `1h30m` or `7d`. A bare number means seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write 250ms, 10s, 1h30m or 7d");
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().ok().ok_or_else(wrong)?;
        let unit_end = rest[digits..].find(|it: char| it.is_ascii_digit());
        let unit_end = unit_end.map_or(rest.len(), |it| digits + it);
        let unit_ms: u64 = match &rest[digits..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(unit_ms).map(Duration::from_millis);
        total = part.and_then(|it| total.checked_add(it)).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Reads how long a call may take: some time at least, or none could succeed.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    let it = duration(text)?;
    if it.is_zero() { Err(format!("{text:?} leaves no time for a call")) } else { Ok(it) }
}

/// Spells a word of a command line as a shell takes it: in quotes if it needs them, without control
/// characters in any case.
pub(crate) fn spell_word(text: &str) -> String {
    if text.chars().any(char::is_control) {
        let spell = |it: char| match it {
            '\'' | '\\' => format!("\\{it}"),
            it if it.is_control() => {
                let mut bytes = [0; 4];
                it.encode_utf8(&mut bytes).bytes().map(|it| format!("\\{it:03o}")).collect()
            }
            it => it.to_string(),
        };
        return format!("$'{}'", text.chars().map(spell).collect::<String>());
    }
    let is_plain = |it: char| it.is_alphanumeric() || "_-.,:/@%+".contains(it);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Reads a time to live, which the wire counts in whole seconds: at least one.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    let it = duration(text)?;
    if it.as_millis() == 0 || it.subsec_nanos() != 0 {
        return Err(format!("{text:?}: a TTL has whole seconds, and at least one"));
    }
    Ok(it)
}

/// Reads a time to live, or `never`, which is [`Duration::ZERO`].
pub(crate) fn ttl_or_never(text: &str) -> Result<Duration, String> {
    if text == "never" { Ok(Duration::ZERO) } else { ttl(text) }
}

/// Reads a size such as `100`, `64k`, `2M` or `4GiB`, in bytes. Units are powers of 1,024.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let short = text.strip_suffix("iB").unwrap_or(text);
    let (digits, shift) = match short.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&short[..at], 10),
        Some((at, 'M')) => (&short[..at], 20),
        Some((at, 'G')) => (&short[..at], 30),
        _ => (text, 0),
    };
    let size = digits.parse::<usize>().ok().and_then(|it| it.checked_mul(1 << shift));
    size.ok_or_else(|| format!("{text:?} is no size: write 100, 64k, 2M, 4G or 2MiB"))
}

/// Reads how much memory a node takes.
pub(crate) fn memory(text: &str) -> Result<usize, String> {
    let (bytes, least) = (size(text)?, RocksLimits::MEMORY_BYTES_MIN);
    if bytes < least {
        return Err(format!("{text:?} is too little: a node needs {} MiB at least", least >> 20));
    }
    Ok(bytes)
}

/// Reads the replicas of one datacenter, such as `dc1=3`.
pub(crate) fn replicas(text: &str) -> Result<(String, u32), String> {
    let (datacenter, count) = text
        .split_once('=')
        .filter(|it| !it.0.is_empty())
        .ok_or_else(|| format!("{text:?}: write DATACENTER=REPLICAS, such as dc1=3"))?;
    let parsed = count.parse().ok();
    let count = parsed.ok_or_else(|| format!("{text:?}: {count:?} is no count of replicas"))?;
    Ok((datacenter.to_owned(), count))
}

/// Spells a duration for people: two units at most.
pub(crate) fn spell_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 10 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        0 => format!("{} ms", duration.as_millis()),
        1..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3_599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Spells a time since the Unix epoch, in UTC: `2026-11-21 18:56:31`.
pub(crate) fn spell_time(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their odd day at the end; 400 of them have always as many days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1_460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + next_year;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Spells a number of bytes for people.
pub(crate) fn spell_bytes(bytes: u64) -> String {
    let mut rest = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if rest < 10_240 {
            return format!("{rest} {unit}");
        }
        rest /= 1_024;
    }
    format!("{rest} TiB")
}

/// Spells a count with a comma after every three digits.
pub(crate) fn spell_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Parses a node's id.
pub(crate) fn node_id(text: &str) -> Result<NodeId, String> {
    let id = uuid::Uuid::parse_str(text).map_err(|error| format!("no node id: {error}"))?;
    Some(NodeId(id.as_u128())).filter(|it| !it.is_nil()).ok_or_else(|| "no node has it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, ms: u64| assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        check("250ms", 250);
        check("10s", 10_000);
        check("1h30m", 5_400_000);
        check("7d", 604_800_000);
        check("90", 90_000);
        check("1m1s1ms", 61_001);
        for wrong in ["", "s", "10x", "1h30", "-5s", "1.5s", "99999999999999999999d", "ms10"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_ttl_has_whole_seconds() {
        assert_eq!(ttl("10m"), Ok(Duration::from_secs(600)));
        for wrong in ["0s", "1500ms", "0"] {
            assert!(ttl(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(
            ["7", "64k", "64K", "2M", "2MiB", "3G", "1KiB"].map(size),
            [7, 65_536, 65_536, 2_097_152, 2_097_152, 3 << 30, 1_024].map(Ok)
        );
        for wrong in ["", "k", "iB", "7iB", "2MB", "-1", "1µ", "99999999999999999M"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(memory("16M"), Ok(16 << 20));
        assert!(memory("16383k").is_err());
    }

    #[test]
    fn replication() {
        assert_eq!(replicas("dc1=3"), Ok(("dc1".to_owned(), 3)));
        for wrong in ["dc1", "=3", "dc1=", "dc1=x", "dc1=-1"] {
            assert!(replicas(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn spelling() {
        let spelled = [0, 1_500, 42_000, 75_000, 4_000_000, 100_000_000]
            .map(|ms| spell_duration(Duration::from_millis(ms)));
        assert_eq!(spelled, ["0.0 ms", "1.5 s", "42.0 s", "1m15s", "1h06m", "1d03h"]);
        assert_eq!(
            [0, 999, 1_000, 34_924, 1_234_567].map(spell_count),
            ["0", "999", "1,000", "34,924", "1,234,567"]
        );
        assert_eq!([10, 20_480, 52_428_800].map(spell_bytes), ["10 B", "20 KiB", "50 MiB"]);
    }

    #[test]
    fn times() {
        let spelled = [0, 951_782_400, 1_763_751_391, 4_107_542_399, 4_107_542_400]
            .map(|seconds| spell_time(Duration::from_secs(seconds)));
        assert_eq!(
            spelled,
            [
                "1970-01-01 00:00:00",
                "2000-02-29 00:00:00",
                "2025-11-21 18:56:31",
                "2100-02-28 23:59:59",
                "2100-03-01 00:00:00",
            ]
        );
    }

    #[test]
    fn words_are_what_a_shell_reads() {
        for (word, spelled) in [
            ("user:42", "user:42"),
            ("größe", "größe"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$(x)", "'$(x)'"),
            ("it's", r"'it'\''s'"),
            ("it's\n\x1b", r"$'it\'s\012\033'"),
        ] {
            assert_eq!(spell_word(word), spelled);
        }
    }
}
