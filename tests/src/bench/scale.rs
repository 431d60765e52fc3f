//! An agent with many Services: how long it takes until they are in force, how long one change takes,
//! and how much memory it is.
//!
//! The control plane's end of the feed is in this process, so that the moment is known at which it has
//! something to say; what is in force, the agent's health check and the kernel's tables say. nft gets
//! the same content as rules, side by side. All of them run ahead of other processes.

mod content;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use fairway_model::{Model, Node};

use self::content::{Content, PORT};
use super::agent::Agent;
use super::ahead::Ahead;
use super::bed::{self, Bed};
use super::control::ControlPlane;
use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::services::millis;
use super::stats::{Series, percentile};
use super::tables::{self, Memory, Tables};
use crate::topology::NodePlan;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Services and endpoints of each that an agent and nft start with
    #[arg(long, default_value = "5000x50", value_parser = parse_content)]
    start: Content,
    /// Services and endpoints of each among which one changes
    #[arg(long, default_value = "44000x4", value_parser = parse_content)]
    change: Content,
    /// Services and endpoints of each that an agent's memory is measured with
    #[arg(long, default_value = "30000x4", value_parser = parse_content)]
    memory: Content,
    /// Starts of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Changes, one after the other; of nft's rules a twentieth of that
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    changes: u32,
    /// Where fairway-proxy and the others are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// One for agents, one for rules.
const NODES: u8 = 2;
/// After tables or rules were removed, which the kernel goes on with in the background.
const REST: Duration = Duration::from_secs(2);
/// How long nft may take.
const LOAD_LIMIT: Duration = Duration::from_secs(120);
/// How long a change may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);
/// Between a change that is in force and the next.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at a table: whoever looks all the time has a processor that the agent could have.
const LOOK: Duration = Duration::from_micros(20);
/// How long the disk may take.
const DISK_LIMIT: Duration = Duration::from_secs(60);

/// A start from the feed, and the processor's time in it.
const FEED: [&str; 2] = ["start_feed", "start_feed_cpu"];

/// Runs the benchmark, prints its table, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut figures = Figures::default();
    let _ahead = Ahead::of_others()?;
    bed::run(NODES, 0, options.bin_dir.clone(), |bed| {
        let scene = Scene { bed, node: bed.node(0)?, rules: bed.node(1)? };
        let nothing = Content { services: 0, endpoints: 0 };
        progress("an agent without Services");
        let (idle, control) = scene.start(nothing, &mut figures, ["start", "start_cpu"])?;
        figures.memory(nothing, Memory::of(idle.pid())?);
        drop((idle, control));
        scene.starts(options, &mut figures)?;
        scene.changes(options, &mut figures)?;
        scene.memory(options, &mut figures)
    })?;
    println!("{}", summary(&figures.0));
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows(&figures.0)))
}

/// Where it is measured.
struct Scene<'a> {
    bed: &'a Bed,
    /// The agents'.
    node: &'a NodePlan,
    /// nft's.
    rules: &'a NodePlan,
}

impl Scene<'_> {
    /// How long it takes from nothing until everything is in force.
    fn starts(&self, options: &Options, figures: &mut Figures) -> Result<()> {
        let content = options.start;
        let rules = content.rules();
        for round in 1..=options.rounds {
            progress(&format!("start with {content}, round {round} of {}", options.rounds));
            let (agent, control) = self.start(content, figures, FEED)?;
            let snapshot = Agent::state(self.bed, self.node).join("snapshot");
            self.bed.wait_until(DISK_LIMIT, "the snapshot", || Ok(snapshot.exists()))?;
            // The control plane is away, and the machine was started anew.
            drop((agent, control));
            Agent::forget_tables(self.bed, self.node)?;
            thread::sleep(REST);
            let away = SocketAddr::from(([127, 0, 0, 1], 9));
            let start = Instant::now();
            let agent = self.ready(content, away)?;
            figures.time(content, "start_disk", start.elapsed());
            figures.time(content, "start_disk_cpu", tables::cpu(agent.pid())?);
            drop(agent);

            self.nft("flush ruleset\n")?;
            thread::sleep(REST);
            let start = Instant::now();
            self.nft(&rules)?;
            figures.nft(content, &["start_feed", "start_disk"], start.elapsed());
        }
        Ok(())
    }

    /// How long one change takes.
    fn changes(&self, options: &Options, figures: &mut Figures) -> Result<()> {
        let content = options.start;
        progress(&format!("changes among {content}"));
        self.changes_among(content, options.changes, figures)?;
        // The rules of the last start are there yet.
        for turn in 1..=options.changes / 20 {
            let change = content.changed_rule(turn * 7 % content.services, turn);
            let start = Instant::now();
            self.nft(&change)?;
            figures.nft(content, &["change"], start.elapsed());
        }
        self.nft("flush ruleset\n")?;
        progress(&format!("changes among {}", options.change));
        self.changes_among(options.change, options.changes, figures)
    }

    fn changes_among(&self, content: Content, changes: u32, figures: &mut Figures) -> Result<()> {
        let (_agent, control) = self.start(content, figures, FEED)?;
        let tables = self.tables()?;
        let mut model = self.model(content);
        for turn in 1..=changes {
            thread::sleep(PAUSE);
            let number = turn.wrapping_mul(7919) % content.services;
            model.endpoints.insert(content.endpoints_of(number, turn));
            let next = model.clone();
            let wanted = content.endpoint(number, 0, turn);
            let start = Instant::now();
            control.publish(next);
            while !tables.endpoints(content::address(number), PORT)?.contains(&wanted) {
                self.bed.check()?;
                ensure!(start.elapsed() < CHANGE_LIMIT, "no {wanted} in the table of endpoints");
                thread::sleep(LOOK);
            }
            figures.time(content, "change", start.elapsed());
        }
        Ok(())
    }

    fn memory(&self, options: &Options, figures: &mut Figures) -> Result<()> {
        let content = options.memory;
        progress(&format!("memory with {content}"));
        let (agent, _control) = self.start(content, figures, FEED)?;
        let snapshot = Agent::state(self.bed, self.node).join("snapshot");
        self.bed.wait_until(DISK_LIMIT, "the snapshot", || Ok(snapshot.exists()))?;
        figures.memory(content, Memory::of(agent.pid())?);
        Ok(())
    }

    /// Starts an agent over nothing, and a control plane that knows this; notes how long it took.
    fn start(
        &self,
        content: Content,
        figures: &mut Figures,
        [metric, cpu_metric]: [&'static str; 2],
    ) -> Result<(Agent, ControlPlane)> {
        Agent::forget(self.bed, self.node)?;
        thread::sleep(REST);
        let control = ControlPlane::start(self.bed, self.node, self.model(content))?;
        let start = Instant::now();
        let agent = self.ready(content, control.address)?;
        figures.time(content, metric, start.elapsed());
        figures.time(content, cpu_metric, tables::cpu(agent.pid())?);
        Ok((agent, control))
    }

    /// Starts an agent and waits until its kernel holds everything.
    fn ready(&self, content: Content, feed: SocketAddr) -> Result<Agent> {
        let mut agent = Agent::follow(self.bed, self.node, feed)?;
        agent.wait_until_ready(self.bed, self.node)?;
        if let Some(last) = content.services.checked_sub(1) {
            let count = self.tables()?.endpoints(content::address(last), PORT)?.len();
            let want = content.endpoints as usize;
            ensure!(count == want, "the last Service leads to {count} endpoints of {want}");
        }
        Ok(agent)
    }

    fn tables(&self) -> Result<Tables> {
        Tables::open(&self.bed.cluster.names.node_bpffs(&self.node.name))
    }

    fn model(&self, content: Content) -> Model {
        content.model(Node {
            name: self.node.name.clone(),
            addresses: self.node.addresses.ips(),
            pod_cidrs: self.node.pod_cidrs.clone(),
            ..Node::default()
        })
    }

    fn nft(&self, rules: &str) -> Result<()> {
        self.bed.run_on(self.rules, &["nft", "-f", "-"], rules, LOAD_LIMIT).map(drop)
    }
}

/// What was measured, in the order in which it was first.
#[derive(Debug, Default)]
struct Figures(Vec<Figure>);

/// All measurements of one thing.
#[derive(Debug)]
struct Figure {
    content: Content,
    metric: &'static str,
    unit: &'static str,
    /// Fairway's; microseconds if `unit` is a time, else megabytes.
    own: Vec<f64>,
    /// nft's, in microseconds.
    nft: Vec<f64>,
}

impl Figures {
    fn of(&mut self, content: Content, metric: &'static str, unit: &'static str) -> &mut Figure {
        let is = |figure: &Figure| (figure.content, figure.metric) == (content, metric);
        let index = self.0.iter().position(is).unwrap_or_else(|| {
            let (own, nft) = Default::default();
            self.0.push(Figure { content, metric, unit, own, nft });
            self.0.len() - 1
        });
        &mut self.0[index]
    }

    fn time(&mut self, content: Content, metric: &'static str, took: Duration) {
        self.of(content, metric, "ms").own.push(millis(took));
    }

    /// nft takes one time for what these are for Fairway.
    fn nft(&mut self, content: Content, metrics: &[&'static str], took: Duration) {
        for metric in metrics {
            self.of(content, metric, "ms").nft.push(millis(took));
        }
    }

    fn memory(&mut self, content: Content, memory: Memory) {
        for (metric, value) in
            [("resident", memory.resident), ("peak", memory.peak), ("tables", memory.tables)]
        {
            self.of(content, metric, "MB").own.push(value);
        }
    }
}

impl Figure {
    /// What is told of it: of changes how long half of them and 99 of 100 took at most, of all else the
    /// median.
    fn told(&self) -> Vec<Told> {
        let of = |metric, pick: fn(&[f64]) -> f64| {
            let nft = (!self.nft.is_empty()).then(|| pick(&self.nft));
            Told { metric, own: pick(&self.own), nft }
        };
        match self.metric {
            "change" => vec![of("change_p50", median), of("change_p99", slowest)],
            metric => vec![of(metric, median)],
        }
    }
}

/// One line of the table.
struct Told {
    metric: &'static str,
    own: f64,
    nft: Option<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut series = Series::default();
    values.iter().for_each(|value| series.push(*value));
    series.median()
}

/// What 99 of 100 do not exceed.
fn slowest(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 99)
}

fn rows(figures: &[Figure]) -> Vec<Row> {
    let mut rows = Vec::new();
    for figure in figures {
        let params = BTreeMap::from([
            ("services", u64::from(figure.content.services).into()),
            ("endpoints", u64::from(figure.content.endpoints).into()),
        ]);
        for Told { metric, own, nft } in figure.told() {
            let row = |case, value, nft: Option<f64>| Row {
                bench: "scale",
                case,
                params: params.clone(),
                metric,
                unit: figure.unit,
                value: rounded(value),
                baseline: nft.map(|_| "nftables"),
                ratio: nft.map(|nft| rounded(value / nft)),
            };
            rows.push(row("fairway", own, nft));
            rows.extend(nft.map(|nft| row("nftables", nft, None)));
        }
    }
    rows
}

fn summary(figures: &[Figure]) -> String {
    let header = ["measured", "services", "endpoints each", "unit", "fairway", "nftables", "ratio"];
    let lines = figures.iter().flat_map(|figure| {
        figure.told().into_iter().map(|Told { metric, own, nft }| {
            vec![
                metric.to_owned(),
                figure.content.services.to_string(),
                figure.content.endpoints.to_string(),
                figure.unit.to_owned(),
                rounded(own).to_string(),
                nft.map(|nft| rounded(nft).to_string()).unwrap_or_default(),
                nft.map(|nft| format!("{:.4}", own / nft)).unwrap_or_default(),
            ]
        })
    });
    table(&header, lines)
}

/// `SERVICESxENDPOINTS`.
fn parse_content(text: &str) -> Result<Content, String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
    let halves = text.split_once('x');
    let content = halves.and_then(|(services, endpoints)| {
        Some(Content { services: number(services)?, endpoints: number(endpoints)? })
    });
    match content {
        // What the tables and the ranges of the addresses hold.
        Some(content) if content.services <= 60_000 && content.total() <= 1_000_000 => Ok(content),
        Some(_) => Err("expected at most 60000 Services and a million endpoints".to_owned()),
        None => Err("expected SERVICESxENDPOINTS, such as 5000x50".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_table_show_medians_and_what_is_slow() {
        let content = Content { services: 10, endpoints: 2 };
        let mut figures = Figures::default();
        for took in 1..=100 {
            figures.time(content, "change", Duration::from_millis(took));
        }
        figures.nft(content, &["change"], Duration::from_millis(200));
        figures.memory(content, Memory { resident: 40.0, peak: 50.0, tables: 60.0 });
        assert_eq!(
            summary(&figures.0),
            "\
| measured   | services | endpoints each | unit | fairway | nftables |  ratio |
|------------|---------:|---------------:|-----:|--------:|---------:|-------:|
| change_p50 |       10 |              2 |   ms |    50.5 |      200 | 0.2525 |
| change_p99 |       10 |              2 |   ms |      99 |      200 | 0.4950 |
| resident   |       10 |              2 |   MB |      40 |          |        |
| peak       |       10 |              2 |   MB |      50 |          |        |
| tables     |       10 |              2 |   MB |      60 |          |        |"
        );
        let rows = rows(&figures.0);
        assert_eq!(rows.len(), 7);
        assert_eq!((rows[0].baseline, rows[0].ratio), (Some("nftables"), Some(0.253)));
        assert_eq!((rows[1].case, rows[1].value, rows[1].ratio), ("nftables", 200.0, None));
    }

    #[test]
    fn contents_are_two_numbers() {
        assert_eq!(parse_content("30x4"), Ok(Content { services: 30, endpoints: 4 }));
        for bad in ["", "30", "0x1", "1x0", "x", "3x4x5", "60001x1", "50000x50"] {
            assert!(parse_content(bad).is_err(), "{bad}");
        }
    }
}
