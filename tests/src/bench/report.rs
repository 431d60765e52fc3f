//! What a benchmark hands over: rows for programs, a table for people.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// The benchmark: `services`.
    pub bench: &'static str,
    /// What was measured: `iptables`.
    pub case: &'static str,
    /// Under which conditions: `{"services": 1000, "way": "pod"}`.
    pub params: BTreeMap<&'static str, Param>,
    /// Which property: `connections`.
    pub metric: &'static str,
    /// Of which unit: `1/s`.
    pub unit: &'static str,
    /// The median of all rounds.
    pub value: f64,
    /// The case that `ratio` compares with, if it compares.
    pub baseline: Option<&'static str>,
    /// The median of the ratios of measurements made side by side. On a noisy machine that is not
    /// quite the ratio of two rows' medians.
    pub ratio: Option<f64>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Param {
    /// How many, or how much.
    Number(u64),
    /// Which.
    Name(&'static str),
}

impl From<u64> for Param {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&'static str> for Param {
    fn from(name: &'static str) -> Self {
        Self::Name(name)
    }
}

/// Writes rows as one JSON array.
pub(super) fn write_json(file: &Path, rows: &[Row]) -> Result<()> {
    let mut text = serde_json::to_string_pretty(rows).context("encode the rows")?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// A table in Markdown, so that it can be read here and put into a page; the first column is text,
/// the others are figures.
pub(super) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    // What aligns the figures here says nothing to Markdown; a colon under the header does.
    let mut lines: Vec<String> = table.lines().collect();
    if let Some(rule) = lines.get_mut(1) {
        let columns: Vec<String> = rule
            .trim_matches('|')
            .split('|')
            .enumerate()
            .map(|(column, dashes)| match column {
                0 => dashes.to_owned(),
                _ => format!("{}:", &dashes[1..]),
            })
            .collect();
        *rule = format!("|{}|", columns.join("|"));
    }
    lines.join("\n")
}

/// A line for each metric and its conditions, a column for each case; ratios in parentheses.
pub(super) fn by_case(rows: &[Row]) -> String {
    let mut cases: Vec<&str> = Vec::new();
    let mut lines: Vec<(String, Vec<(&str, String)>)> = Vec::new();
    for row in rows {
        if !cases.contains(&row.case) {
            cases.push(row.case);
        }
        let conditions = row.params.iter().filter(|(name, _)| **name != "rate");
        let conditions: Vec<String> = conditions
            .map(|(name, value)| match value {
                Param::Number(number) => format!("{number} {name}"),
                Param::Name(name) => (*name).to_owned(),
            })
            .collect();
        let conditions = conditions.join(", ");
        let unit = if row.unit.is_empty() { String::new() } else { format!(" ({})", row.unit) };
        let name = format!("{conditions}: {}{unit}", row.metric);
        let figure = match row.ratio {
            Some(ratio) => format!("{} ({ratio:.2})", row.value),
            None => row.value.to_string(),
        };
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, figures)) => figures.push((row.case, figure)),
            None => lines.push((name, vec![(row.case, figure)])),
        }
    }
    let header: Vec<&str> = std::iter::once("measured").chain(cases.iter().copied()).collect();
    let body = lines.into_iter().map(|(name, figures)| {
        let figure = |case_of: &&str| {
            let found = figures.iter().find(|(case, _)| case == case_of);
            found.map(|(_, figure)| figure.clone()).unwrap_or_default()
        };
        std::iter::once(name).chain(cases.iter().map(figure)).collect()
    });
    table(&header, body)
}

/// Rounds to as many decimals as a figure of this size deserves.
pub(super) fn rounded(value: f64) -> f64 {
    let scale = if value.abs() < 100.0 { 1000.0 } else { 10.0 };
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_flat_object() {
        let row = Row {
            bench: "services",
            case: "iptables",
            params: BTreeMap::from([("services", 1000.into()), ("way", "pod".into())]),
            metric: "connections",
            unit: "1/s",
            value: 15000.0,
            baseline: Some("direct"),
            ratio: Some(0.9),
        };
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"bench":"services","case":"iptables","params":{"services":1000,"way":"pod"},"metric":"connections","unit":"1/s","value":15000.0,"baseline":"direct","ratio":0.9}"#
        );
    }

    #[test]
    fn a_table_is_markdown_with_figures_to_the_right() {
        let rows = [["direct", "16000"], ["iptables", "9000"]];
        let text =
            table(&["case", "1/s"], rows.map(|row| row.map(str::to_owned).to_vec()).into_iter());
        assert_eq!(
            text,
            "| case     |   1/s |\n\
             |----------|------:|\n\
             | direct   | 16000 |\n\
             | iptables |  9000 |"
        );
    }

    #[test]
    fn figures_keep_what_matters() {
        for (value, expected) in [(1.07949, 1.079), (65.4321, 65.432), (16_123.456, 16_123.5)] {
            assert_eq!(rounded(value), expected);
        }
    }
}
