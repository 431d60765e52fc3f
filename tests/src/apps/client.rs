//! A client that runs somewhere in a lab until it is told to finish, seen from who starts it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

/// Printed when the first answer is there; the summary, one line of JSON, comes at the end.
const RUNNING: &str = "running";

/// The client's process; killed on drop.
#[derive(Debug)]
pub(super) struct Client {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Starts it; returns when its first answer is there.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start the client")?;
        let output = child.stdout.take().context("the client's output")?;
        let mut client = Self { child, output: BufReader::new(output) };
        let line = client.next_line()?;
        if line != RUNNING {
            bail!("the client says {line:?}");
        }
        Ok(client)
    }

    /// Gives it a line to read.
    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the client's input")?;
        writeln!(input, "{line}").context("tell the client")
    }

    /// Tells it to finish what it does and stop; its summary.
    pub(super) fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        drop(self.child.stdin.take());
        let line = self.next_line()?;
        serde_json::from_str(&line).with_context(|| format!("the client says {line:?}"))
    }

    fn next_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("read the client's output")?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the client: says that the first answer is there.
pub(super) fn say_running() {
    println!("{RUNNING}");
}

/// In the client: set when whoever started it tells it to finish.
pub(super) fn told_to_finish() -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&told);
    thread::spawn(move || {
        let mut rest = Vec::new();
        // An error is an end as well.
        let _ = io::stdin().lock().read_to_end(&mut rest);
        flag.store(true, Ordering::Relaxed);
    });
    told
}
