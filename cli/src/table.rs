//! Tables without borders: aligned columns for a terminal, tabs for a pipe. Pure.
//!
//! Control characters and backslashes are escaped in both: a value can neither break a line nor
//! command a terminal.

use comfy_table::{
    Attribute, Cell as TableCell, CellAlignment, Color, ContentArrangement, presets,
};

use crate::output::Paint;

/// A table of text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    header: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    paint: Paint,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), paint: Paint::Plain }
    }
}

impl Cell {
    /// A cell that stands out.
    pub(crate) fn painted(paint: Paint, text: impl Into<String>) -> Self {
        Self { text: text.into(), paint }
    }
}

impl Table {
    /// A table with these columns. A name that begins with `>` is that of a right-aligned column.
    pub(crate) fn new(columns: &[&str]) -> Self {
        Self {
            header: columns.iter().map(|it| it.trim_start_matches('>').to_owned()).collect(),
            right: columns.iter().map(|it| it.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// A table without a heading.
    pub(crate) fn without_header(columns: usize) -> Self {
        Self { header: Vec::new(), right: vec![false; columns], rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// True if it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Columns padded to their widest cell, two spaces between them.
    pub(crate) fn aligned(&self, colour: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !self.header.is_empty() {
            let cell = |it: &String| TableCell::new(it).add_attribute(Attribute::Bold);
            table.set_header(self.header.iter().map(cell).collect::<Vec<_>>());
        }
        for row in &self.rows {
            table.add_row(row.iter().map(Cell::styled).collect::<Vec<_>>());
        }
        for (index, right) in self.right.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                let side = if *right { CellAlignment::Right } else { CellAlignment::Left };
                column.set_cell_alignment(side);
            }
        }
        let mut text: String =
            table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
        if self.header.is_empty() && self.rows.is_empty() {
            text.clear();
        }
        text
    }

    /// Cells separated by tabs, the heading first.
    pub(crate) fn separated(&self) -> String {
        let mut text = String::new();
        if !self.header.is_empty() {
            text += &(self.header.join("\t") + "\n");
        }
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|it| escape(&it.text)).collect();
            text += &(cells.join("\t") + "\n");
        }
        text
    }
}

impl Cell {
    fn styled(&self) -> TableCell {
        let cell = TableCell::new_owned(escape(&self.text));
        match self.paint {
            Paint::Plain => cell,
            Paint::Good => cell.fg(Color::DarkGreen),
            Paint::Bad => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Paint::Warning => cell.fg(Color::DarkYellow),
            Paint::Heading => cell.add_attribute(Attribute::Bold),
            Paint::Faint => cell.add_attribute(Attribute::Dim),
        }
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for it in text.chars() {
        if it.is_control() || it == '\\' {
            escaped.extend(it.escape_default());
        } else {
            escaped.push(it);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["name", ">count", "note"]);
        table.row(["a".into(), "7".into(), "tab\there".into()]);
        table.row([Cell::painted(Paint::Bad, "longer"), "1,234".into(), "".into()]);
        table
    }

    #[test]
    fn aligned_columns() {
        assert_eq!(
            sample().aligned(false),
            "name    count  note
a           7  tab\\there
longer  1,234
"
        );
    }

    #[test]
    fn colour_changes_no_text() {
        let coloured = sample().aligned(true);
        assert!(coloured.contains("\x1b["), "{coloured:?}");
        assert!(!sample().aligned(false).contains('\x1b'));
    }

    #[test]
    fn separated_columns() {
        assert_eq!(sample().separated(), "name\tcount\tnote\na\t7\ttab\\there\nlonger\t1,234\t\n");
    }

    #[test]
    fn a_table_of_nothing() {
        assert_eq!(Table::without_header(2).aligned(false), "");
        assert!(Table::new(&["a"]).is_empty());
    }
}
