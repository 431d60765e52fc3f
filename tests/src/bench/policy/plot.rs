//! Connections a second over the number of rules, as a picture.

use std::fmt::{self, Write as _};

use super::Case;
use crate::bench::report::{Param, Row};

/// The panel's size without its labels, and its place, in pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 50.0;
/// The top of the axis, and its lines.
const MOST: f64 = 1.2;
const LINES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// Colours that can be told apart on light and on dark ground.
const STYLE: &str = "\
text{font:12px sans-serif;fill:#333}\
line{stroke:#888;stroke-opacity:.4}\
polyline{fill:none;stroke:currentColor;stroke-width:2}\
circle{fill:currentColor}\
.iptables{color:#d55e00}\
.ipset{color:#a0522d}\
.nftables{color:#0a84c8}\
.fairway{color:#159a6f}\
@media(prefers-color-scheme:dark){text{fill:#ddd}}";

/// Draws the connections a second of each case, in those without a policy at the same moment. Each number of rules has
/// as much room; ranges of one rule come behind all numbers of rules.
pub(super) fn svg(rows: &[Row]) -> String {
    let points: Vec<Point> = rows.iter().filter_map(Point::read).collect();
    let mut places: Vec<Place> = points.iter().map(|point| point.place).collect();
    places.sort_unstable();
    places.dedup();
    let x = |place: Place| {
        let before = places.iter().take_while(|other| **other < place).count();
        let [before, all] = [before, places.len()].map(|count| count as f64);
        LEFT + WIDTH * (before + 0.5) / all
    };
    let y = |ratio: f64| TOP + HEIGHT * (1.0 - ratio.clamp(0.0, MOST) / MOST);
    let (width, height) = (LEFT + WIDTH + 20.0, TOP + HEIGHT + 30.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
         <title>New connections a second to a restricted pod by number of rules, relative to none</title>\n\
         <style>{STYLE}</style>\n\
         <text x=\"{LEFT}\" y=\"16\">New connections a second to a restricted pod; 1 is no policy</text>\n"
    );
    let mut add = |line: fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    let drawn = Case::ALL.map(Case::name);
    let drawn = drawn.into_iter().filter(|case| points.iter().any(|point| point.case == *case));
    for (number, case) in drawn.clone().enumerate() {
        let x = LEFT + 80.0 * number as f64;
        add(format_args!(
            "<circle class=\"{case}\" cx=\"{}\" cy=\"31\" r=\"4\"/><text x=\"{}\" y=\"35\">{case}</text>",
            x + 4.0,
            x + 13.0,
        ));
    }
    for ratio in LINES {
        add(format_args!(
            "<line x1=\"{LEFT}\" y1=\"{:.1}\" x2=\"{}\" y2=\"{:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ratio}</text>",
            y(ratio),
            LEFT + WIDTH,
            y(ratio),
            LEFT - 5.0,
            y(ratio) + 4.0,
        ));
    }
    for place in &places {
        add(format_args!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{place}</text>",
            x(*place),
            TOP + HEIGHT + 16.0
        ));
    }
    for case in drawn {
        let mut of_case: Vec<&Point> = points.iter().filter(|point| point.case == case).collect();
        of_case.sort_unstable_by_key(|point| point.place);
        let at = |point: &&Point| format!("{:.1},{:.1}", x(point.place), y(point.ratio));
        let path: Vec<String> = of_case.iter().map(at).collect();
        if path.len() > 1 {
            add(format_args!("<polyline class=\"{case}\" points=\"{}\"/>", path.join(" ")));
        }
        for point in of_case {
            add(format_args!(
                "<circle class=\"{case}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{case} with {}: {:.2}</title></circle>",
                x(point.place),
                y(point.ratio),
                point.place,
                point.ratio,
            ));
        }
    }
    text + "</svg>\n"
}

/// What is said, in the order of the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Rules(u64),
    Ranges(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(count) => write!(f, "{count} rules"),
            Self::Ranges(count) => write!(f, "{count} CIDRs"),
        }
    }
}

/// A row as far as it is drawn.
struct Point {
    case: &'static str,
    place: Place,
    ratio: f64,
}

impl Point {
    fn read(row: &Row) -> Option<Self> {
        let (Param::Number(rules), Param::Number(ranges)) =
            (row.params.get("rules")?, row.params.get("cidrs")?)
        else {
            return None;
        };
        let place = match (*rules, *ranges) {
            (0, 0) => return None,
            (0, ranges) => Place::Ranges(ranges),
            (rules, _) => Place::Rules(rules),
        };
        let ratio = row.ratio.filter(|_| row.metric == "connections")?;
        Some(Self { case: row.case, place, ratio })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(case: &'static str, rules: u64, cidrs: u64, metric: &'static str) -> Row {
        Row {
            bench: "policy",
            case,
            params: BTreeMap::from([("rules", rules.into()), ("cidrs", cidrs.into())]),
            metric,
            unit: "1/s",
            value: 20_000.0,
            baseline: Some("no policy"),
            ratio: Some(0.6),
        }
    }

    #[test]
    fn rules_come_before_ranges_and_what_has_none_is_not_drawn() {
        let text = svg(&[
            row("fairway", 0, 20, "connections"),
            row("fairway", 0, 0, "connections"),
            row("fairway", 10, 0, "connections"),
            row("fairway", 10, 0, "requests"),
            row("nftables", 10, 0, "connections"),
        ]);
        let (_, body) = text.split_once("1 is no policy</text>\n").unwrap();
        let lines: Vec<&str> = body.lines().filter(|line| !line.starts_with("<line")).collect();
        assert_eq!(
            lines,
            [
                r#"<circle class="fairway" cx="50" cy="31" r="4"/><text x="59" y="35">fairway</text>"#,
                r#"<circle class="nftables" cx="130" cy="31" r="4"/><text x="139" y="35">nftables</text>"#,
                r#"<text x="151.0" y="246" text-anchor="middle">10 rules</text>"#,
                r#"<text x="361.0" y="246" text-anchor="middle">20 CIDRs</text>"#,
                r#"<polyline class="fairway" points="151.0,140.0 361.0,140.0"/>"#,
                r#"<circle class="fairway" cx="151.0" cy="140.0" r="3"><title>fairway with 10 rules: 0.60</title></circle>"#,
                r#"<circle class="fairway" cx="361.0" cy="140.0" r="3"><title>fairway with 20 CIDRs: 0.60</title></circle>"#,
                r#"<circle class="nftables" cx="151.0" cy="140.0" r="3"><title>nftables with 10 rules: 0.60</title></circle>"#,
                "</svg>",
            ]
        );
    }
}
