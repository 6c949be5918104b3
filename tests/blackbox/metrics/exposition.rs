//! The text format of OpenMetrics 1.0, as strict as its specification: what is not said there to be
//! right is a complaint. Timestamps, exemplars and units are not read, since nodes send none.

use std::collections::{BTreeMap, BTreeSet};

/// Label names and values.
type Labels = BTreeMap<String, String>;

/// A whole exposition.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    samples: BTreeMap<(String, Labels), f64>,
    families: BTreeSet<String>,
}

/// The family whose lines are read.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Exposition {
    /// Reads a text, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("it does not end in # EOF")?;
        let mut it = Self::default();
        let mut family = Family::default();
        for line in body.split_inclusive('\n') {
            let line = line.strip_suffix('\n').ok_or("the last line has no end")?;
            it.line(&mut family, line).map_err(|complaint| format!("{complaint}: {line}"))?;
        }
        it.histograms()?;
        Ok(it)
    }

    /// The value of one series.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.samples.get(&(name.to_owned(), labels.iter().map(owned).collect())).copied()
    }

    /// The sum of all series of a name.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.samples.iter().filter(|it| it.0.0 == name).map(|it| it.1).sum()
    }

    fn line(&mut self, family: &mut Family, line: &str) -> Result<(), String> {
        let Some(metadata) = line.strip_prefix("# ") else { return self.sample(family, line) };
        let mut words = metadata.splitn(3, ' ');
        let mut word = || words.next().filter(|it| !it.is_empty()).ok_or("a word is missing");
        let (what, name, text) = (word()?, word()?, word()?);
        if !is_name(name) {
            return Err("no name of a metric".to_owned());
        }
        match what {
            // Ours begin with it.
            "HELP" => {
                if !self.families.insert(name.to_owned()) {
                    return Err("the family has been there".to_owned());
                }
                *family = Family { name: name.to_owned(), kind: None };
                unescaped(text, &['\\', 'n', '"']).map(drop)
            }
            "TYPE" if family.name != name || family.kind.is_some() => {
                Err("it belongs behind its family's HELP".to_owned())
            }
            "TYPE" => {
                family.kind = Some(Kind::parse(text).ok_or("an unknown type")?);
                Ok(())
            }
            _ => Err("neither HELP nor TYPE".to_owned()),
        }
    }

    fn sample(&mut self, family: &mut Family, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
        let (name, labels) = match series.split_once('{') {
            None => (series, Labels::new()),
            Some((name, rest)) => (name, labels(rest)?),
        };
        if !is_name(name) {
            return Err("no name of a metric".to_owned());
        }
        let suffix = name.strip_prefix(&family.name).ok_or("a sample of another family")?;
        let kind = family.kind.ok_or("a sample without a type")?;
        let suffixes: &[&str] = match kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_count", "_sum"],
            Kind::Info => &["_info"],
        };
        if !suffixes.contains(&suffix) {
            return Err(format!("{suffix:?} is no suffix of {kind:?}"));
        }
        if labels.contains_key("le") != (suffix == "_bucket") {
            return Err("`le` belongs to buckets".to_owned());
        }
        let value = number(value).ok_or("no number")?;
        if kind != Kind::Gauge && (value.is_nan() || value < 0.0) {
            return Err("it cannot be negative".to_owned());
        }
        if kind == Kind::Info && value != 1.0 {
            return Err("an info is 1".to_owned());
        }
        match self.samples.insert((name.to_owned(), labels), value) {
            None => Ok(()),
            Some(_) => Err("the series has been there".to_owned()),
        }
    }

    /// Buckets rise with their bounds up to `+Inf`, which holds everything.
    fn histograms(&self) -> Result<(), String> {
        let mut buckets: BTreeMap<(&str, Labels), Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), count) in &self.samples {
            let Some(name) = name.strip_suffix("_bucket") else { continue };
            let mut labels = labels.clone();
            let bound = labels.remove("le").and_then(|it| number(&it));
            let bound = bound.ok_or_else(|| format!("{name}: a bucket without a bound"))?;
            buckets.entry((name, labels)).or_default().push((bound, *count));
        }
        for ((name, labels), mut counts) in buckets {
            counts.sort_by(|a, b| a.0.total_cmp(&b.0));
            let rises = counts.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
            let (last, all) = counts.last().copied().unwrap_or_default();
            let of = |suffix: &str| {
                self.samples.get(&(format!("{name}{suffix}"), labels.clone())).copied()
            };
            let whole = last == f64::INFINITY && of("_count") == Some(all);
            if !rises || !whole || of("_sum").is_none() {
                return Err(format!("{name} {labels:?}: {counts:?}"));
            }
        }
        Ok(())
    }
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "counter" => Some(Self::Counter),
            "gauge" => Some(Self::Gauge),
            "histogram" => Some(Self::Histogram),
            "info" => Some(Self::Info),
            _ => None,
        }
    }
}

fn is_name(text: &str) -> bool {
    let begins = text.starts_with(|it: char| it.is_ascii_alphabetic() || it == '_' || it == ':');
    begins && text.chars().all(|it| it.is_ascii_alphanumeric() || it == '_' || it == ':')
}

/// Reads `name="value",name="value"}`.
fn labels(mut rest: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    loop {
        let (name, behind) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name) || name.contains(':') {
            return Err(format!("{name:?} is no name of a label"));
        }
        let end = closing_quote(behind).ok_or("a value without an end")?;
        let value = unescaped(&behind[..end], &['\\', 'n', '"'])?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} twice"));
        }
        match behind[end + 1..].split_at_checked(1) {
            Some((",", more)) => rest = more,
            Some(("}", "")) => return Ok(labels),
            _ => return Err("labels do not end in }".to_owned()),
        }
    }
}

/// The index of the first quote that no backslash takes away.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, it)| {
        let ends = it == '"' && !escaped;
        escaped = it == '\\' && !escaped;
        ends.then_some(at)
    })
}

fn unescaped(text: &str, allowed: &[char]) -> Result<String, String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(it) = characters.next() {
        if it != '\\' {
            plain.push(it);
            continue;
        }
        match characters.next() {
            Some('n') => plain.push('\n'),
            Some(it) if allowed.contains(&it) => plain.push(it),
            other => return Err(format!("a backslash before {other:?}")),
        }
    }
    Ok(plain)
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        _ if text.starts_with(|it: char| it.is_ascii_digit() || it == '-') => text.parse().ok(),
        _ => None,
    }
}

#[test]
fn what_is_wrong_is_seen() {
    let head = "# HELP a Help.\n# TYPE a counter\n";
    let good = format!("{head}a_total{{x=\"1,\\\"}}\",y=\"\"}} 2\na_total 3\n# EOF\n");
    let read = Exposition::parse(&good).expect("it is right");
    assert_eq!(read.value("a_total", &[("y", ""), ("x", "1,\"}")]), Some(2.0));
    assert_eq!(read.sum("a_total"), 5.0);

    let histogram = |lines: &str| format!("# HELP h It.\n# TYPE h histogram\n{lines}");
    let buckets = "h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 0.7\n";
    let whole = histogram(&format!("{buckets}h_count 2\n# EOF\n"));
    Exposition::parse(&whole).expect("it is right too");
    for bad in [
        "a_total 1\n# EOF\n".to_owned(),
        format!("{head}a_total 1\n"),
        format!("{head}a_total 1\n\n# EOF\n"),
        format!("{head}a_total 1\na_total 2\n# EOF\n"),
        format!("{head}a 1\n# EOF\n"),
        format!("{head}a_total -1\n# EOF\n"),
        format!("{head}a_total one\n# EOF\n"),
        format!("{head}a_total{{x=\"1\" 1\n# EOF\n"),
        format!("{head}a_total{{x=\"1\",}} 1\n# EOF\n"),
        format!("{head}a_total{{x=\"1\",x=\"1\"}} 1\n# EOF\n"),
        format!("{head}a_total{{x=\"\\q\"}} 1\n# EOF\n"),
        format!("{head}a_total 1\n{head}# EOF\n"),
        "# HELP a Help.\n# TYPE b counter\n# EOF\n".to_owned(),
        "# HELP a Help.\na_total 1\n# EOF\n".to_owned(),
        "# TYPE a counter\na_total 1\n# EOF\n".to_owned(),
        format!("{head}a_total 1 1700000000\n# EOF\n"),
        histogram(&format!("{buckets}h_count 3\n# EOF\n")),
        histogram(&format!("{buckets}# EOF\n")),
        histogram("h_bucket{le=\"0.5\"} 1\nh_sum 1.0\nh_count 1\n# EOF\n"),
        whole.replace("} 2", "} 0"),
    ] {
        assert!(Exposition::parse(&bad).is_err(), "{bad}");
    }
}
