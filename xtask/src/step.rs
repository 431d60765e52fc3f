//! A child process that takes a while: what it prints is followed while it runs.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cargo::spoken;

/// Whether a step announces itself where no terminal can show it moving.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    /// Print one line first: the reader of a log then knows what the silence is.
    Always,
    /// Print nothing: the step is usually over at once.
    OnTerminal,
}

/// Runs a command to its end, with a spinner that shows its latest line of output.
///
/// Standard input is empty, so that no question can stop a machine without a person.
///
/// # Errors
/// When the command cannot be started or fails; all that it printed is part of the error then.
pub(crate) fn run(title: &str, announce: Announce, command: &mut Command) -> anyhow::Result<()> {
    if announce == Announce::Always && !std::io::stderr().is_terminal() {
        eprintln!("{title} ...");
    }
    let spinner = spinner(title);
    let mut output = String::new();
    let end = follow(command.stdin(Stdio::null()), |line| {
        spinner.set_message(line.trim().to_owned());
        output.push_str(line);
        output.push('\n');
    });
    spinner.finish_and_clear();
    // Whoever still holds the output, say a service that an installation started, is none of our business.
    let status = end.with_context(|| title.to_owned())?.status;
    if !status.success() {
        bail!("{title}: {} failed ({status}):\n{}", spoken(command), output.trim_end());
    }
    Ok(())
}

/// A spinner on standard error; draws nothing where that is no terminal.
pub(crate) fn spinner(title: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_prefix(title.to_owned());
    // The template is a literal that parses; were it not, the default style would do as well.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// How a followed command ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Whether a process that the command left behind still holds its output.
    pub(crate) left_behind: bool,
}

/// Runs a command and hands over each line of its standard output and error as it comes, in the order written.
///
/// Bytes that are not UTF-8 are replaced: what a test prints may be anything.
///
/// # Errors
/// When the command cannot be started, waited for, or its output not be read.
pub(crate) fn follow(command: &mut Command, mut on_line: impl FnMut(&str)) -> anyhow::Result<End> {
    // How long output may still come after the command has ended, and how often we look whether it has.
    const AFTERMATH: Duration = Duration::from_secs(2);
    const LOOK: Duration = Duration::from_millis(100);

    // One pipe for both streams keeps their order.
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    command.stdout(writer.try_clone().context("duplicate a pipe")?).stderr(writer);
    let child = command.spawn();
    // The command object holds writing ends too; with them the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("start {command:?}"))?;

    // A thread of its own, because a process left behind may hold the pipe open for ever.
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || read_lines(reader, &sender));
    let mut ended: Option<Instant> = None;
    let left_behind = loop {
        match lines.recv_timeout(LOOK) {
            Ok(line) => on_line(&line.with_context(|| format!("read the output of {command:?}"))?),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => match ended {
                Some(at) if at.elapsed() > AFTERMATH => break true,
                Some(_) => {}
                None => {
                    let status =
                        child.try_wait().with_context(|| format!("wait for {command:?}"))?;
                    ended = status.map(|_| Instant::now());
                }
            },
        }
    };
    let status = child.wait().with_context(|| format!("wait for {command:?}"))?;
    Ok(End { status, left_behind })
}

/// Sends each line of `source`, without its end, until there are no more or nobody listens.
fn read_lines(source: impl Read, lines: &Sender<std::io::Result<String>>) {
    let mut source = BufReader::new(source);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let line = match source.read_until(b'\n', &mut bytes) {
            Ok(0) => return,
            Ok(_) => Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned()),
            Err(error) => Err(error),
        };
        let last = line.is_err();
        if lines.send(line).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows a shell script and returns what came.
    fn follow_script(script: &str) -> (Vec<String>, End) {
        let mut lines = Vec::new();
        let end =
            follow(Command::new("sh").args(["-c", script]), |line| lines.push(line.to_owned()));
        (lines, end.unwrap())
    }

    #[test]
    fn both_streams_come_in_the_order_written() {
        let (lines, end) =
            follow_script("echo one; echo two >&2; echo; printf 'last\\377'; exit 3");
        assert_eq!(lines, ["one", "two", "", "last\u{fffd}"]);
        assert_eq!((end.status.code(), end.left_behind), (Some(3), false));
    }

    #[test]
    fn a_process_left_behind_is_noticed_and_not_waited_for() {
        let (lines, end) = follow_script("sleep 30 & echo $!");
        assert!(end.left_behind && end.status.success());
        let left: u32 = lines[0].parse().unwrap();
        assert!(Command::new("kill").arg(left.to_string()).status().unwrap().success());
    }

    #[test]
    fn a_failing_command_is_named_with_what_it_said() {
        let mut command = Command::new("sh");
        let error = run("try", Announce::OnTerminal, command.args(["-c", "echo why; false"]));
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.starts_with("try: sh -c") && text.ends_with("\nwhy"), "{text}");
    }

    #[test]
    fn a_missing_command_is_an_error_and_not_a_hang() {
        let error =
            run("try", Announce::OnTerminal, &mut Command::new("/nowhere/tool")).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/tool"));
    }
}
