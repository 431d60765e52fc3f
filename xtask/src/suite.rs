//! Runs every test and closes with one line that says how many passed and failed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::process::Command;

use anyhow::ensure;
use clap::ValueEnum;

use crate::cargo::{self, cargo, target_directory};
use crate::step::{End, follow, spinner};

/// Where a lab's control plane finds the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// In a folder of manifests
    Manifests,
    /// In an API server
    Api,
}

impl Source {
    /// As the tests read it.
    const VARIABLE: &str = "FAIRWAY_LAB_SOURCE";

    fn as_str(self) -> &'static str {
        match self {
            Self::Manifests => "manifests",
            Self::Api => "api",
        }
    }
}

/// Tests of labs that every run also does from an API server: what an outage, policies, both families, flannel's
/// nodes and gateways have to do with is most of what could differ.
const SAMPLE: [&str; 5] = [
    "dual_stack::both_families",
    "flannel::a_node_is_converted",
    "ingress::gateways_serve_pods",
    "outages::without_the_control_plane",
    "policy::a_pod_is_restricted",
];

/// Builds and runs the tests of the workspace, doc tests included; `filter` and `harness` go to the test harness.
/// With a `source`, those of labs alone.
///
/// Everything the tests print is passed on; the count goes to standard output as its last line, `N passed, N failed`.
///
/// Ctrl-C needs no code: the terminal sends it to the whole foreground group, so the tests and cargo get it as well.
///
/// # Errors
/// When something does not build, a test fails, a test binary dies without a result, or no test ran at all.
pub(crate) fn run(
    source: Option<Source>,
    filter: Option<&str>,
    harness: &[OsString],
) -> anyhow::Result<()> {
    // The end-to-end tests execute the products, which cargo builds for a package's own tests only.
    cargo::run(cargo().args(["build", "--workspace", "--bins", "--locked"]))?;
    // Built apart from the run, in sight: cargo's own progress needs the terminal.
    let packages: &[&str] = match source {
        None => &["--workspace"],
        Some(_) => &["-p", "fairway-tests", "--tests"],
    };
    cargo::run(cargo().args(["test", "--locked", "--no-run"]).args(packages))?;
    // The products were built just now: without this, tests would have them built once more.
    let products = target_directory()?.join("debug");
    let in_source = |mut tests: Command, source: Source| {
        tests.env("FAIRWAY_BIN_DIR", &products).env(Source::VARIABLE, source.as_str());
        if std::env::var_os(THREADS).is_none() {
            tests.env(THREADS, threads().to_string());
        }
        tests
    };
    let tests = test_command(packages, filter, harness);
    let mut counts = Counts::default();
    count(&mut in_source(tests, source.unwrap_or(Source::Manifests)), &mut counts)?;
    if source.is_none() && filter.is_none() {
        eprintln!("some tests of labs once more, with an API server");
        count(&mut in_source(sample(harness), Source::Api), &mut counts)?;
    }

    for failure in &counts.failures {
        eprintln!("failed: {failure}");
    }
    println!("{counts}");
    ensure!(counts.failed == 0, "tests failed");
    ensure!(
        counts.passed > 0,
        "no test ran{}",
        filter.map_or(String::new(), |f| format!(": none has {f:?} in its name"))
    );
    Ok(())
}

/// Where the test harness reads how many tests run at a time.
const THREADS: &str = "RUST_TEST_THREADS";

/// Twice as many as the harness would run: labs wait more than they compute.
fn threads() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

fn test_command(packages: &[&str], filter: Option<&str>, harness: &[OsString]) -> Command {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]).args(packages).args(filter);
    if !harness.is_empty() {
        command.arg("--").args(harness);
    }
    command
}

fn sample(harness: &[OsString]) -> Command {
    let mut command = cargo();
    // Of the whole workspace: for one package alone, cargo would choose other features and build anew.
    command.args(["test", "--locked", "--no-fail-fast", "--workspace", "--test", "labs"]);
    command.arg("--").args(harness).args(SAMPLE);
    command
}

/// Runs a `cargo test`, passes its output on and counts.
fn count(command: &mut Command, counts: &mut Counts) -> anyhow::Result<()> {
    let spinner = spinner("test");
    let end = follow(command, |line| {
        counts.read(line);
        spinner.suspend(|| println!("{line}"));
        spinner.set_message(format!("{counts}  {}", counts.latest));
    });
    spinner.finish_and_clear();
    let End { status, left_behind } = end?;
    counts.finish(status.success());
    if left_behind {
        counts.fail("a test left a process behind that still holds its output".to_owned());
    }
    Ok(())
}

/// What the lines of a `cargo test` add up to.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    passed: u64,
    pub(crate) failed: u64,
    /// What failed: binaries, and what went wrong around them.
    pub(crate) failures: BTreeSet<String>,
    /// The binary that is running and has not given a result yet.
    current: Option<String>,
    /// Binaries that another followed without a result of theirs.
    silent: Vec<String>,
    /// The last binary named, which a result belongs to; doc tests of one crate give several.
    pub(crate) latest: String,
}

impl Counts {
    /// Takes a line of output into account.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(binary) = binary_named_by(line) {
            self.silent.extend(self.current.take());
            self.latest = binary.clone();
            self.current = Some(binary);
        } else if let Some((passed, failed)) = result_given_by(line) {
            self.current = None;
            self.passed += passed;
            self.failed += failed;
            if failed > 0 {
                self.failures.insert(self.latest.clone());
            }
        }
    }

    /// Takes cargo's exit into account: if it failed, a binary without a result has died and counts as a failure.
    pub(crate) fn finish(&mut self, succeeded: bool) {
        self.silent.extend(self.current.take());
        if succeeded {
            return;
        }
        for binary in std::mem::take(&mut self.silent) {
            self.fail(format!("{binary} (ended without a result)"));
        }
        if self.failed == 0 {
            self.fail("cargo test itself".to_owned());
        }
    }

    /// Counts a failure that no result line counts.
    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.insert(what);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// `     Running unittests src/lib.rs (target/debug/deps/fairway_abi-0123)` or `   Doc-tests fairway_abi`.
fn binary_named_by(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("doc tests of {name}"));
    }
    let (source, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let file = path.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _hash)| name);
    Some(format!("{name}, {source}"))
}

/// Passed and failed of `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`.
fn result_given_by(line: &str) -> Option<(u64, u64)> {
    let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| -> Option<u64> {
        counts.split("; ").find_map(|count| count.strip_suffix(what)?.parse().ok())
    };
    Some((count(" passed")?, count(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(succeeded: bool, output: &str) -> (String, Vec<String>) {
        let mut counts = Counts::default();
        output.lines().for_each(|line| counts.read(line));
        counts.finish(succeeded);
        (counts.to_string(), counts.failures.into_iter().collect())
    }

    const OK: &str = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
    const FAILED: &str = "test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
    const ABI: &str = "     Running unittests src/lib.rs (target/debug/deps/fairway_abi-0a1b)";
    const LAB: &str = "     Running tests/lab.rs (/else where/debug/deps/lab-77)";
    const DOC: &str = "   Doc-tests fairway_abi";

    #[test]
    fn results_of_all_binaries_add_up() {
        let output = format!(
            "{ABI}\nrunning 3 tests\ntest a ... ok\n{OK}\n{LAB}\n{OK}\n{DOC}\n{OK}\n{OK}\n"
        );
        assert_eq!(counted(true, &output), ("8 passed, 0 failed".to_owned(), vec![]));
    }

    #[test]
    fn a_failed_binary_is_named() {
        let output = format!("{ABI}\n{FAILED}\n{LAB}\n{OK}\n{DOC}\n{OK}\n{FAILED}\n");
        let (counts, failed) = counted(false, &output);
        assert_eq!(counts, "6 passed, 8 failed");
        assert_eq!(failed, ["doc tests of fairway_abi", "fairway_abi, unittests src/lib.rs"]);
    }

    #[test]
    fn a_binary_that_died_counts_as_a_failure() {
        let (counts, failed) = counted(false, &format!("{LAB}\nrunning 9 tests\n{ABI}\n{OK}\n"));
        assert_eq!(counts, "2 passed, 1 failed");
        assert_eq!(failed, ["lab, tests/lab.rs (ended without a result)"]);
    }

    #[test]
    fn a_harness_of_its_own_that_says_nothing_is_no_failure() {
        assert_eq!(counted(true, &format!("{LAB}\nfine\n{ABI}\n{OK}\n")).0, "2 passed, 0 failed");
    }

    #[test]
    fn cargo_failing_by_itself_is_never_zero_failures() {
        let (counts, failed) = counted(false, "error: could not compile\n");
        assert_eq!(counts, "0 passed, 1 failed");
        assert_eq!(failed, ["cargo test itself"]);
    }

    #[test]
    fn lines_that_only_look_like_results_do_not_count() {
        for line in [
            "test result: maybe",
            "a test result: ok. 1 passed; 0 failed",
            "test result: ok. many passed; 0 failed",
            "Running out of time",
        ] {
            assert_eq!(counted(true, line).0, "0 passed, 0 failed", "{line}");
        }
    }

    #[test]
    fn a_running_command_is_counted_from_both_its_streams() {
        let script = format!("echo '{ABI}' >&2; echo '{FAILED}'; echo '{LAB}' >&2; exit 101");
        let mut counts = Counts::default();
        count(Command::new("sh").args(["-c", &script]), &mut counts).unwrap();
        assert_eq!(counts.to_string(), "1 passed, 5 failed");
        assert_eq!(counts.failures.len(), 2, "{counts:?}");
    }

    #[test]
    fn a_process_left_behind_is_a_failure() {
        // It ends by itself soon after we have stopped waiting for it.
        let script = format!("echo '{ABI}' >&2; echo '{OK}'; sleep 4 &");
        let mut counts = Counts::default();
        count(Command::new("sh").args(["-c", &script]), &mut counts).unwrap();
        assert_eq!(counts.to_string(), "2 passed, 1 failed");
    }

    #[test]
    fn the_sample_is_of_tests_that_exist() {
        for test in SAMPLE {
            let (module, name) = test.split_once("::").unwrap();
            let file = format!("{}/../tests/tests/labs/{module}.rs", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text.matches(&format!("fn {name}")).count(), 1, "{name} in {file}");
        }
    }
}
