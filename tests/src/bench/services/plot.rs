//! Connections a second over the number of Services, as a picture.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Case;
use crate::bench::report::{Param, Row};

/// A panel's size without its labels, in pixels.
const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 140.0;
/// Where the first panel is, and how far the next ones are.
const LEFT: f64 = 46.0;
const TOP: f64 = 64.0;
const ACROSS: f64 = 330.0;
const DOWN: f64 = 210.0;
/// The top of the axis, and its lines.
const MOST: f64 = 1.2;
const LINES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// The panels in the order of reading.
const PANELS: [(&str, &str); 4] = [
    ("pod", "pod to ClusterIP, one node"),
    ("nodes", "pod to ClusterIP, two nodes"),
    ("local", "outside to NodePort, endpoint there"),
    ("remote", "outside to NodePort, endpoint elsewhere"),
];

/// Colours that can be told apart on light and on dark ground.
const STYLE: &str = "\
text{font:12px sans-serif;fill:#333}\
line{stroke:#888;stroke-opacity:.4}\
polyline{fill:none;stroke:currentColor;stroke-width:2}\
circle{fill:currentColor}\
.iptables{color:#d55e00}\
.nftables{color:#0a84c8}\
.fairway{color:#159a6f}\
@media(prefers-color-scheme:dark){text{fill:#ddd}}";

/// Draws the connections a second of each case, in those of plain routing at the same moment, a panel
/// for each way. Each number of Services has as much room.
pub(super) fn svg(rows: &[Row]) -> String {
    let points: Vec<Point> = rows.iter().filter_map(Point::read).collect();
    let sizes: BTreeSet<u64> = points.iter().map(|point| point.services).collect();
    let sizes: Vec<u64> = sizes.into_iter().collect();
    let panels: Vec<&(&str, &str)> =
        PANELS.iter().filter(|(way, _)| points.iter().any(|point| point.way == *way)).collect();
    let columns = if panels.len() > 1 { 2.0 } else { 1.0 };
    let lines = if panels.len() > 2 { 2.0 } else { 1.0 };
    let (width, height) = (columns * ACROSS, TOP + lines * DOWN - 20.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
         <title>New connections a second by number of Services, relative to plain routing</title>\n\
         <style>{STYLE}</style>\n\
         <text x=\"{LEFT}\" y=\"16\">New connections a second; 1 is plain routing</text>\n"
    );
    let mut add = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    for (x, case) in [LEFT, LEFT + 80.0, LEFT + 160.0].into_iter().zip(CASES) {
        add(format_args!(
            "<circle class=\"{case}\" cx=\"{}\" cy=\"31\" r=\"4\"/><text x=\"{}\" y=\"35\">{case}</text>",
            x + 4.0,
            x + 13.0,
        ));
    }
    let places = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)];
    for ((way, title), (column, line)) in panels.into_iter().zip(places) {
        let (left, top) = (LEFT + column * ACROSS, TOP + line * DOWN);
        let x = |services: u64| {
            let place = sizes.iter().take_while(|size| **size < services).count();
            let [place, sizes] = [place, sizes.len()].map(|count| count as f64);
            left + WIDTH * (place + 0.5) / sizes
        };
        let y = |ratio: f64| top + HEIGHT * (1.0 - ratio.clamp(0.0, MOST) / MOST);
        add(format_args!("<text x=\"{left}\" y=\"{}\">{title}</text>", top - 6.0));
        for ratio in LINES {
            let (y, right) = (y(ratio), left + WIDTH);
            add(format_args!(
                "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ratio}</text>",
                left - 5.0,
                y + 4.0,
            ));
        }
        for size in &sizes {
            add(format_args!(
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{size}</text>",
                x(*size),
                top + HEIGHT + 16.0
            ));
        }
        for case in CASES {
            let mut of_case: Vec<&Point> =
                points.iter().filter(|point| point.way == *way && point.case == case).collect();
            of_case.sort_by_key(|point| point.services);
            let at = |point: &&Point| format!("{:.1},{:.1}", x(point.services), y(point.ratio));
            let path: Vec<String> = of_case.iter().map(at).collect();
            if path.len() > 1 {
                add(format_args!("<polyline class=\"{case}\" points=\"{}\"/>", path.join(" ")));
            }
            for point in of_case {
                add(format_args!(
                    "<circle class=\"{case}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{case} at {}: {:.2}</title></circle>",
                    x(point.services),
                    y(point.ratio),
                    point.services,
                    point.ratio,
                ));
            }
        }
    }
    text + "</svg>\n"
}

/// What is drawn; plain routing is the line at 1.
const CASES: [&str; 3] = [Case::Iptables.name(), Case::Nftables.name(), Case::Fairway.name()];

/// A row as far as it is drawn.
struct Point {
    way: &'static str,
    case: &'static str,
    services: u64,
    ratio: f64,
}

impl Point {
    fn read(row: &Row) -> Option<Self> {
        let (Param::Name(way), Param::Number(services)) =
            (row.params.get("way")?, row.params.get("services")?)
        else {
            return None;
        };
        let drawn = row.metric == "connections" && CASES.contains(&row.case);
        drawn.then_some(Self { way, case: row.case, services: *services, ratio: row.ratio? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(case: &'static str, way: &'static str, services: u64, metric: &'static str) -> Row {
        Row {
            bench: "services",
            case,
            params: BTreeMap::from([("services", services.into()), ("way", way.into())]),
            metric,
            unit: "1/s",
            value: 20_000.0,
            baseline: Some("direct"),
            ratio: Some(0.6),
        }
    }

    #[test]
    fn a_small_picture_is_exactly_so() {
        let rows = [
            row("direct", "local", 0, "connections"),
            row("iptables", "local", 1, "connections"),
            row("iptables", "local", 1000, "connections"),
            row("iptables", "local", 1000, "requests"),
        ];
        let text = svg(&rows);
        let (head, body) = text.split_once("</style>\n").unwrap();
        assert!(head.starts_with(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 330 254\" width=\"330\" height=\"254\">"
        ));
        assert_eq!(
            body,
            r#"<text x="46" y="16">New connections a second; 1 is plain routing</text>
<circle class="iptables" cx="50" cy="31" r="4"/><text x="59" y="35">iptables</text>
<circle class="nftables" cx="130" cy="31" r="4"/><text x="139" y="35">nftables</text>
<circle class="fairway" cx="210" cy="31" r="4"/><text x="219" y="35">fairway</text>
<text x="46" y="58">outside to NodePort, endpoint there</text>
<line x1="46" y1="204.0" x2="306" y2="204.0"/><text x="41" y="208.0" text-anchor="end">0</text>
<line x1="46" y1="174.8" x2="306" y2="174.8"/><text x="41" y="178.8" text-anchor="end">0.25</text>
<line x1="46" y1="145.7" x2="306" y2="145.7"/><text x="41" y="149.7" text-anchor="end">0.5</text>
<line x1="46" y1="116.5" x2="306" y2="116.5"/><text x="41" y="120.5" text-anchor="end">0.75</text>
<line x1="46" y1="87.3" x2="306" y2="87.3"/><text x="41" y="91.3" text-anchor="end">1</text>
<text x="111.0" y="220" text-anchor="middle">1</text>
<text x="241.0" y="220" text-anchor="middle">1000</text>
<polyline class="iptables" points="111.0,134.0 241.0,134.0"/>
<circle class="iptables" cx="111.0" cy="134.0" r="3"><title>iptables at 1: 0.60</title></circle>
<circle class="iptables" cx="241.0" cy="134.0" r="3"><title>iptables at 1000: 0.60</title></circle>
</svg>
"#
        );
    }

    #[test]
    fn each_way_that_was_measured_has_a_panel() {
        let ways = ["pod", "nodes", "local", "remote"];
        let text = svg(&ways.map(|way| row("fairway", way, 1, "connections")));
        for (_, title) in PANELS {
            assert!(text.contains(title), "{title}");
        }
        assert!(text.contains("viewBox=\"0 0 660 464\""));
    }
}
