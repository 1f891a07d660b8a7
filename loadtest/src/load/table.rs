//! Sections as Markdown, which is also what the terminal shows.

use super::section::{Check, Section, Table};

/// A section with its tables, notes and checks.
pub(crate) fn section(section: &Section) -> String {
    let mut text = format!("## {}\n\n{}\n\n", section.name, section.about);
    for part in &section.tables {
        if !part.title.is_empty() {
            text += &format!("**{}**\n\n", part.title);
        }
        text += &table(part);
        text.push('\n');
    }
    for note in &section.notes {
        text += &format!("- {note}\n");
    }
    for check in &section.checks {
        text += &format!("- {}\n", line(check));
    }
    text
}

fn line(check: &Check) -> String {
    let sign = if check.holds() { "✓" } else { "✗" };
    let (found, most) = (number(check.found), number(Some(check.at_most)));
    format!("{sign} {}: {found} (at most {most})", check.what)
}

/// A Markdown table whose columns are aligned in plain text, too.
pub(crate) fn table(table: &Table) -> String {
    let Some(first) = table.rows.first() else { return String::new() };
    let mut lines = vec![
        std::iter::once(String::new())
            .chain(first.figures.iter().map(|(name, _)| (*name).to_owned()))
            .collect::<Vec<_>>(),
    ];
    for row in &table.rows {
        let cells = row.figures.iter().map(|(_, value)| number(*value));
        lines.push(std::iter::once(row.name.clone()).chain(cells).collect());
    }
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, cells) in lines.iter().enumerate() {
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("| {cell:<width$} |"),
                _ => format!(" {cell:>width$} |"),
            };
        }
        text.push('\n');
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width - 1);
                text +=
                    &if column == 0 { format!("| {dashes}- |") } else { format!(" {dashes}: |") };
            }
            text.push('\n');
        }
    }
    text
}

/// Three significant digits where they matter, whole numbers from 100 on.
fn number(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        None => "n/a".to_owned(),
        Some(value) if value.abs() >= 100.0 || value.fract().abs() < 1e-9 => grouped(value),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::section::Row;

    #[test]
    fn columns_line_up() {
        let row =
            |name: &str, a, b| Row { name: name.into(), figures: vec![("a µs", a), ("b", b)] };
        let rows = vec![row("direct", Some(1234567.0), None), row("x", Some(-0.5), Some(12.34))];
        let text = table(&Table { title: String::new(), rows });
        let expected = "\
|        |      a µs |    b |
| ------ | --------: | ---: |
| direct | 1,234,567 |  n/a |
| x      |     -0.50 | 12.3 |
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_check_says_how_it_went() {
        let check = Check::at_most("CPU per request, ratio", Some(1.31), 1.25);
        assert_eq!(line(&check), "✗ CPU per request, ratio: 1.31 (at most 1.25)");
        assert!(!Check::at_most("x", None, 1.0).holds());
        assert!(Check::at_most("x", Some(1.0), 1.0).holds());
    }
}
