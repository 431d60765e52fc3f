//! `fairway-proxy check`: shows what the agent's self-test found.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::selftest::{Finding, Outcome, beside_us};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `fairway-proxy check` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the agent serves its metrics
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind: SocketAddr,

    /// Answer in JSON: a list of objects with check, peer, outcome and message
    #[arg(long)]
    pub json: bool,
}

/// What was found, as text, and whether all is well. Without an agent, what needs none is tested.
pub fn run(options: &Options) -> Result<(String, bool)> {
    let findings = match ask(options.metrics_bind) {
        Ok(findings) => findings,
        Err(error) => {
            let mut findings = beside_us(Path::new("/"))?;
            findings.push(Finding {
                check: "agent".to_owned(),
                peer: String::new(),
                outcome: Outcome::Failed,
                message: format!("{error:#}; only what needs no agent was tested"),
            });
            findings
        }
    };
    let good = findings.iter().all(|finding| finding.outcome != Outcome::Failed);
    let text = if options.json {
        serde_json::to_string_pretty(&findings).context("encode the findings")?
    } else {
        table(&findings)
    };
    Ok((text, good))
}

fn ask(agent: SocketAddr) -> Result<Vec<Finding>> {
    let answer = get(agent, "/selftest")?;
    serde_json::from_str(&answer)
        .with_context(|| format!("read the answer of the agent at {agent}"))
}

/// What the agent serves at a path.
pub(crate) fn get(agent: SocketAddr, path: &str) -> Result<String> {
    let about = || format!("ask the agent at {agent}: does it run?");
    let mut stream = TcpStream::connect_timeout(&agent, PATIENCE).with_context(about)?;
    stream.set_read_timeout(Some(PATIENCE)).with_context(about)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {agent}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(about)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(about)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("the agent at {agent} answers {:?}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { check, peer, outcome, message } in findings {
        let outcome = match outcome {
            Outcome::Passed => "passed",
            Outcome::Repaired => "repaired",
            Outcome::Noted => "noted",
            Outcome::Failed => "FAILED",
        };
        let peer = if peer.is_empty() { "-" } else { peer };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{outcome:8} {check:18} {peer:20} {message}");
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn shows_what_the_agent_found_and_whether_all_is_well() {
        let found = |outcome| Finding {
            check: "path_mtu".to_owned(),
            peer: "n2".to_owned(),
            outcome,
            message: "lost".to_owned(),
        };
        for (outcome, word, good) in
            [(Outcome::Noted, "noted", true), (Outcome::Failed, "FAILED", false)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let agent = listener.local_addr().expect("an address");
            let body = serde_json::to_string(&[found(outcome)]).expect("JSON");
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 512];
                let length = stream.read(&mut request).expect("a request");
                assert!(request[..length].starts_with(b"GET /selftest "));
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n{body}").expect("answered");
            });
            let options = Options { metrics_bind: agent, json: false };
            let (text, all_well) = run(&options).expect("an answer");
            server.join().expect("served");
            assert!(
                text.starts_with(word) && text.contains("n2") && text.ends_with("lost"),
                "{text}"
            );
            assert_eq!(all_well, good);
        }
    }
}
