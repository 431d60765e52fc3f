//! `fairway-proxy dns query`: what a name is answered with, and why.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fairway_cni_protocol::{Request, Resolved, Response, encode};

/// Upstreams are waited for, one after the other.
const PATIENCE: Duration = Duration::from_secs(15);

/// What can be asked about DNS.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Ask for a name as a pod or a process of this node does; tells who knows it, and the names that were tried
    Query(Options),
}

/// What `fairway-proxy dns query` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Name, from its top, such as web.default.svc.cluster.local
    pub name: String,

    /// Type of records
    #[arg(default_value = "A")]
    pub kind: String,

    /// Pod of this node that asks, as NAMESPACE/NAME: its namespace says what its search list is
    #[arg(long, value_name = "POD")]
    pub from: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// As given to the agent
    #[arg(long, value_name = "PATH", default_value = fairway_cni_protocol::DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Asks the agent; what to print.
pub fn run(verb: &Verb) -> Result<String> {
    let Verb::Query(options) = verb;
    let about = || format!("ask the agent on {}", options.socket.display());
    let resolved = ask(options).with_context(about)?;
    if options.json {
        return serde_json::to_string_pretty(&resolved).context("encode the answer");
    }
    Ok(text(&resolved))
}

fn ask(options: &Options) -> Result<Resolved> {
    let mut stream =
        UnixStream::connect(&options.socket).context("is it running, and are you root?")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Options { name, kind, from, .. } = options.clone();
    stream.write_all(&encode(&Request::ResolveName { name, kind, from })?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer).context("it gave an answer that is none")? {
        Response::Name(resolved) => Ok(resolved),
        Response::Error(refusal) => bail!("it refuses: {}", refusal.message),
        _ => bail!("it answered another question"),
    }
}

fn text(resolved: &Resolved) -> String {
    let Resolved { outcome, by, tried, answer, namespace } = resolved;
    let mut lines = vec![format!("outcome    {outcome}"), format!("by         {by}")];
    lines.extend(namespace.iter().map(|namespace| format!("namespace  {namespace}")));
    lines.extend(tried.iter().map(|name| format!("tried      {name}")));
    lines.extend(answer.iter().map(|record| format!("answer     {record}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_few_lines_for_people() {
        let resolved = Resolved {
            outcome: "NOERROR".into(),
            by: "upstreams, along the pod's search list".into(),
            tried: vec!["example.com.svc.cluster.local.".into(), "example.com.".into()],
            answer: vec!["example.com. 30 IN A 192.0.2.7".into()],
            namespace: Some("shop".into()),
        };
        assert_eq!(
            text(&resolved),
            "outcome    NOERROR\n\
             by         upstreams, along the pod's search list\n\
             namespace  shop\n\
             tried      example.com.svc.cluster.local.\n\
             tried      example.com.\n\
             answer     example.com. 30 IN A 192.0.2.7"
        );
    }
}
