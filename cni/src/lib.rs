//! The CNI plugin: what a container runtime executes to connect a pod to its node.
//!
//! In: `CNI_*` environment variables and the network configuration on standard input. Out: a result
//! or an error as one JSON document on standard output, in the shape of the configuration's
//! `cniVersion`. Nothing keeps running; what has to outlive the call is in the kernel, in the
//! address store, and with the agent.
//!
//! ```text
//! version, failure, call, config, result    the CNI specification: what is said, in which shape
//! portmap, bandwidth                        its conventions: what a runtime passes for a capability
//! add, adopt, delete, check, maintenance    the verbs
//! pool, ipam, wiring, agent, undo           what the verbs are made of
//! ```
//!
//! A pod gets one veth pair and its address alone, as a /32 or /128. Its default route goes to a
//! gateway address that nobody owns; a permanent neighbour entry answers for it with the MAC
//! address of the node's end, so neither ARP nor neighbour discovery is ever needed.
//!
//! Deliberately absent: a bridge, delegation to other plugins, a log file, threads that outlive
//! the call.

mod add;
mod adopt;
mod agent;
mod bandwidth;
mod call;
mod check;
mod config;
mod delete;
mod failure;
mod ipam;
mod maintenance;
mod pool;
mod portmap;
mod result;
mod undo;
mod version;
mod wiring;

use std::ffi::OsString;
use std::io::{Read, Write};

pub use crate::config::DEFAULT_DATA_DIR;
pub use crate::ipam::Reconciled;
pub use crate::maintenance::reconcile_addresses;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::call::{Call, Command, ContainerCall};
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::version::Version;

/// Serves one call and returns the process's exit status: 0, or 1 if an error was printed.
///
/// `env` looks up environment variables. Everything that touches the system happens in the calling
/// thread's network namespace, which is the node's.
pub fn run(
    env: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
) -> u8 {
    let mut version = Version::LATEST;
    let (answer, status) = match serve(env, stdin, &mut version) {
        Ok(answer) => (answer, 0),
        Err(failure) => (Some(failure.to_json(version)), 1),
    };
    let Some(answer) = answer else {
        return status;
    };
    match writeln!(stdout, "{answer}").and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(error) => {
            // The runtime has to take this for a failed call, and follows a failed ADD with DEL.
            eprintln!("fairway-cni: write the answer to standard output: {error}");
            1
        }
    }
}

/// Sets `version` as soon as it is known, so that an error later on is written in that version.
fn serve(
    env: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    version: &mut Version,
) -> Result<Option<Value>, Failure> {
    let call = Call::parse(env)?;
    let input = read_all(stdin)?;
    if call.command == Command::Version {
        return Ok(Some(versions(&input)));
    }
    let config = read_config(&input, call.command, version)?;

    let told = |container: &ContainerCall| {
        let about = format!("{} {}", call.command.name(), container.subject());
        move |failure: Failure| failure.about(&about)
    };
    match call.command {
        Command::Add => {
            let container = call.container(env)?;
            let result = add::add(&container, &config).map_err(told(&container))?;
            Ok(Some(result.into_json(*version)))
        }
        Command::Check => {
            let container = call.container(env)?;
            check::check(&container, &config).map_err(told(&container))?;
            Ok(None)
        }
        Command::Del => {
            let container = call.container(env)?;
            delete::delete(&container.attachment, &config).map_err(told(&container))?;
            Ok(None)
        }
        Command::Gc => {
            maintenance::collect_garbage(&config).map_err(|f| f.about("GC"))?;
            Ok(None)
        }
        Command::Status => {
            maintenance::status(&config).map_err(|f| f.about("STATUS"))?;
            Ok(None)
        }
        Command::Version => Ok(None),
    }
}

/// All of a call that needs no node: the environment and the configuration are read and checked as
/// the verb would, with addresses from `pod_cidrs`. Nothing is changed, and nobody is asked.
///
/// The previous result, if the verb reads one, comes back in the shape of the configuration's version.
///
/// # Errors
/// The document that the call would print.
pub fn dry_run(
    env: &dyn Fn(&str) -> Option<OsString>,
    input: &[u8],
    pod_cidrs: &[IpNet],
) -> Result<Option<Value>, Value> {
    let mut version = Version::LATEST;
    let mut run = || {
        let call = Call::parse(env)?;
        if call.command == Command::Version {
            return Ok(Some(versions(input)));
        }
        let config = read_config(input, call.command, &mut version)?;
        let mut wanted = config.wanted.clone();
        if matches!(call.command, Command::Add | Command::Check | Command::Del) {
            wanted.extend(call.container(env)?.pod.wanted);
        }
        if matches!(call.command, Command::Add | Command::Status) {
            pool::pools(pod_cidrs, config.ranges.as_ref(), &wanted)?;
        }
        if matches!(call.command, Command::Add | Command::Check) {
            return Ok(config.previous_result()?.map(|result| result.into_json(version)));
        }
        Ok(None)
    };
    run().map_err(|failure: Failure| failure.to_json(version))
}

fn read_config(input: &[u8], command: Command, version: &mut Version) -> Result<Config, Failure> {
    let json = config::decode(input)?;
    *version = config::version(&json)?;
    if *version < command.since() {
        return Err(Failure::new(
            Code::IncompatibleVersion,
            format!("cniVersion {version} has no {}", command.name()),
        ));
    }
    Config::parse(&json, command)
}

/// A configuration is a few hundred bytes, a long chain's previous result a few thousand.
const INPUT_LIMIT: u64 = 4 << 20;

fn read_all(stdin: &mut dyn Read) -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    stdin.take(INPUT_LIMIT + 1).read_to_end(&mut input).map_err(|error| {
        Failure::new(Code::Io, format!("read the network configuration from stdin: {error}"))
    })?;
    if input.len() as u64 > INPUT_LIMIT {
        return Err(Failure::new(
            Code::Decode,
            format!("the network configuration on stdin is longer than {INPUT_LIMIT} bytes"),
        ));
    }
    Ok(input)
}

/// VERSION never fails: whoever asks does not know yet what may be said.
fn versions(input: &[u8]) -> Value {
    let asked = config::decode(input).ok().and_then(|json| config::version(&json).ok());
    json!({
        "cniVersion": asked.unwrap_or(Version::LATEST).name(),
        "supportedVersions": Version::ALL.map(Version::name),
    })
}
