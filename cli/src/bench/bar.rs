//! Figures that may be so much at most, and whether they are.

use serde::Serialize;

use crate::{
    failure::Failure,
    output::{Output, Paint},
    table::{Cell, Table},
};

/// The columns of the table of bars.
const BAR_TABLE: [&str; 4] = ["figure", ">measured", ">bar", "verdict"];

/// One figure, and what it may be at most.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BarDocument {
    name: String,
    unit: &'static str,
    measured: f64,
    at_most: Option<f64>,
}

impl BarDocument {
    /// A figure that has a bar.
    pub(super) fn new(
        name: impl Into<String>,
        unit: &'static str,
        measured: f64,
        at_most: f64,
    ) -> Self {
        Self { name: name.into(), unit, measured, at_most: Some(at_most) }
    }

    /// A figure that is only told.
    pub(super) fn without_bar(name: impl Into<String>, unit: &'static str, measured: f64) -> Self {
        Self { name: name.into(), unit, measured, at_most: None }
    }

    /// Whether the bar is reached; `None` if there is none.
    pub(super) fn held(&self) -> Option<bool> {
        self.at_most.map(|it| self.measured <= it)
    }

    /// True unless a bar is missed.
    pub(super) fn is_held(&self) -> bool {
        self.held() != Some(false)
    }

    /// The cells of its row, but for the verdict.
    pub(super) fn cells(&self) -> [String; 3] {
        let spell = |it: f64| match self.unit {
            "" => format!("{it:.2}"),
            unit if it < 10.0 => format!("{it:.2} {unit}"),
            unit => format!("{it:.0} {unit}"),
        };
        let bar = self.at_most.map(|it| format!("<= {}", spell(it)));
        [self.name.clone(), spell(self.measured), bar.unwrap_or_default()]
    }
}

/// Shows figures, and which of them miss their bars.
pub(super) fn show_bars(bars: &[BarDocument], output: Output) -> Result<(), Failure> {
    let mut table = Table::new(&BAR_TABLE);
    for it in bars {
        let verdict = match it.held() {
            None => Cell::default(),
            Some(true) => Cell::painted(Paint::Good, "pass"),
            Some(false) => Cell::painted(Paint::Bad, "MISSED"),
        };
        table.row(it.cells().into_iter().map(Cell::from).chain([verdict]));
    }
    output.report(&table)?;
    output.line("")
}

#[expect(clippy::cast_precision_loss, reason = "bytes and keys are far fewer than 2^53")]
pub(super) fn number(it: u64) -> f64 {
    it as f64
}
