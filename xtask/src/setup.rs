//! Finds or installs what the eBPF build and the tests need.
//!
//! A round is: [`facts`] looks at the machine, [`plan`] holds what it saw against what is needed, [`apply`] does the next
//! step. Rounds follow each other until nothing is left to do; a machine that has everything is looked at once, which
//! takes a few program starts and no network.

mod apply;
mod facts;
mod plan;
pub(crate) mod proxies;

use std::path::PathBuf;

use anyhow::bail;

use facts::{Facts, Machine as _, ThisMachine};
use plan::{Line, State, Step};

use crate::guest;

/// What is printed of requirements that are met already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// A line for each.
    Everything,
    /// Nothing: another verb only wants them met.
    Changes,
}

/// Meets every requirement that can be met here, one printed line each.
///
/// # Errors
/// When an installation fails, or something is missing that this machine does not let us install; the printed line says
/// what to do then.
pub(crate) fn run(report: Report) -> anyhow::Result<()> {
    let first = plan::assess(&Facts::gather(&ThisMachine), &[]);
    let lines = install(first.clone())?;
    for (line, before) in lines.iter().zip(&first) {
        print(line, before, report);
    }
    if report == Report::Everything {
        fetch_kernel();
    }
    let missing = lines.iter().filter(|line| matches!(line.state, State::Missing(_))).count();
    if missing > 0 {
        bail!(
            "{missing} of {} requirements are missing; the lines above say what to do",
            lines.len()
        );
    }
    Ok(())
}

/// Fetches what `cargo xtask guest` boots. Nothing else needs it, so that it may be missing.
fn fetch_kernel() {
    let (verdict, text) = match guest::Kernel::obtain() {
        Ok(kernel) => ("found", format!("Linux {}", kernel.release)),
        Err(error) => ("without", format!("`cargo xtask guest` cannot run here: {error:#}")),
    };
    eprintln!("{verdict:<9}  {:<12}  {text}", "guest");
}

/// Refreshes the lists of Debian's packages, which takes root.
pub(crate) fn update_package_lists() -> anyhow::Result<()> {
    apply::update_lists()
}

/// A program on the search path, or where administrators' programs are.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    ThisMachine.find(name)
}

/// Does the steps that `lines` ask for, and those that follow from them, and returns where that led.
fn install(mut lines: Vec<Line>) -> anyhow::Result<Vec<Line>> {
    let mut done: Vec<Step> = Vec::new();
    let mut refused: Vec<Step> = Vec::new();
    while let Some(step) = plan::next_step(&lines) {
        if done.contains(&step) {
            bail!("{step} reported success, yet what it should bring is still not found");
        }
        match apply::apply(&step) {
            Ok(()) => done.push(step),
            // The plan has another way for what rustup cannot download; everything else has none.
            Err(error) if step == Step::RustSource => {
                eprintln!("{step} did not work, trying the distribution's compiler: {error:#}");
                refused.push(step);
            }
            Err(error) => return Err(error),
        }
        lines = plan::assess(&Facts::gather(&ThisMachine), &refused);
    }
    Ok(lines)
}

fn print(line: &Line, before: &Line, report: Report) {
    let (verdict, text) = match &line.state {
        State::Found(text) if matches!(before.state, State::Found(_)) => {
            if report == Report::Changes {
                return;
            }
            ("found", text)
        }
        State::Found(text) => ("installed", text),
        State::Missing(text) => ("missing", text),
        // `install` returns when no line needs a step.
        State::Needs(_) => return,
    };
    eprintln!("{verdict:<9}  {:<12}  {text}", line.requirement);
}
