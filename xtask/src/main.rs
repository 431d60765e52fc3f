//! The project's own commands, reached as `cargo xtask <verb>`.
//!
//! Each verb is a short list of steps that one could also type by hand; nothing here is needed to *use* Fairway. Own
//! messages go to standard error, so that the output of the program a verb starts stays clean.
//!
//! | module | does |
//! |---|---|
//! | [`setup`] | finds or installs what the eBPF build and the tests need |
//! | [`binaries`] | builds the release binaries and hands over to one of them |
//! | [`suite`] | runs every test and counts |
//! | [`guest`] | runs tests on an older kernel, in a virtual machine |
//! | [`package`] | makes Debian packages and image archives |
//! | [`arrows`] | refuses a dependency between our crates that the architecture does not have |
//! | [`tree`] | files that are put together before they are written |
//! | [`cargo`], [`step`] | the two kinds of child process: cargo, and one that takes a while |

mod arrows;
mod binaries;
mod cargo;
mod guest;
mod package;
mod setup;
mod step;
mod suite;
mod tree;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use binaries::Profile;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Fairway's own commands")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install what the eBPF build and the tests need
    Setup,
    /// Build the release binaries, with the eBPF programs inside
    Build {
        /// Build without optimisation, with debug assertions
        #[arg(long)]
        debug: bool,
    },
    /// Build the release binaries and make Debian packages and container image archives of them
    #[command(after_help = "\
Makes, for the node, the control plane and the gateway, a Debian package with a systemd unit, and an image archive (an OCI image
layout in a tar file) that needs no container engine to be made:
  apt install ./target/package/fairway-node_*.deb
  ctr -n k8s.io images import target/package/fairway-node_*.oci.tar
  podman load -i target/package/fairway-controlplane_*.oci.tar")]
    Package {
        /// Where to put them [default: target/package]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Of binaries without optimisation, with debug assertions
        #[arg(long)]
        debug: bool,
    },
    /// Start a cluster of three nodes on this machine and walk through what it does
    Demo {
        /// Exit non-zero if any step is not as it should be, and clean up
        #[arg(long)]
        check: bool,
    },
    /// Build, then run fairway-lab with these arguments (`cargo xtask lab --help` lists its verbs)
    #[command(disable_help_flag = true)]
    Lab {
        /// Arguments of fairway-lab
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run every test of the workspace, or those whose name contains FILTER
    Test {
        /// Run the tests of labs alone, whose control plane finds the objects there
        #[arg(long, value_enum)]
        source: Option<suite::Source>,
        /// Part of a test's name
        filter: Option<String>,
        /// Arguments of the test harness, such as `--nocapture`
        #[arg(last = true)]
        harness: Vec<OsString>,
    },
    /// Run the tests that ask most of a kernel on an older one, in a virtual machine
    Guest {
        /// Part of a scenario's title
        filter: Option<String>,
    },
    /// Build, then run fairway-bench with these arguments (`services`, `--json FILE`, `--help`); for `ingress`,
    /// bring nginx, HAProxy and Envoy first, and for `dns` Knot, Unbound and dnsmasq, as far as they can be had
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of fairway-bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Setup => setup::run(setup::Report::Everything),
        Verb::Build { debug } => binaries::build_and_list(Profile::new(debug)),
        Verb::Package { out, debug } => {
            setup::run(setup::Report::Changes)?;
            package::run(out, Profile::new(debug))
        }
        Verb::Demo { check } => {
            setup::run(setup::Report::Changes)?;
            let mut args = vec![OsString::from("demo")];
            args.extend(check.then(|| OsString::from("--check")));
            binaries::build_and_become("fairway-lab", &args)
        }
        Verb::Lab { args } => binaries::build_and_become("fairway-lab", &args),
        Verb::Test { source, filter, harness } => {
            setup::run(setup::Report::Changes)?;
            arrows::check()?;
            suite::run(source, filter.as_deref(), &harness)
        }
        Verb::Guest { filter } => {
            setup::run(setup::Report::Changes)?;
            guest::run(filter.as_deref())
        }
        Verb::Bench { mut args } => {
            setup::run(setup::Report::Changes)?;
            if args.first().is_some_and(|name| name == "ingress") {
                let folder = setup::proxies::bring()?;
                args.splice(1..1, [OsString::from("--proxy-dir"), folder.into_os_string()]);
            }
            if args.first().is_some_and(|name| name == "dns") {
                setup::proxies::bring_dns();
            }
            binaries::build_and_become("fairway-bench", &args)
        }
    }
}
