//! A child process that takes a while: its latest line is shown while it runs, the rest only if it fails.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

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
    // One pipe for both streams keeps their lines in the order they were written.
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    command.stdin(Stdio::null());
    command.stdout(writer.try_clone().context("duplicate a pipe")?);
    command.stderr(writer);
    let child = command.spawn();
    // The command holds the writing ends; the pipe would never end with them open here.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("{title}: start {command:?}"))?;

    let output = follow(reader, |line| spinner.set_message(line.trim().to_owned()))
        .with_context(|| format!("{title}: read the output of {command:?}"));
    let status = child
        .wait()
        .with_context(|| format!("{title}: wait for {command:?}"))?;
    spinner.finish_and_clear();
    let output = output?;
    if !status.success() {
        bail!(
            "{title}: {command:?} failed ({status}):\n{}",
            output.trim_end()
        );
    }
    Ok(())
}

/// A spinner on standard error; draws nothing where that is no terminal.
pub(crate) fn spinner(title: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_prefix(title.to_owned());
    // The template is a literal, so that the error arm is never taken; the default style would do as well.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// Reads to the end of `source`, hands over each line as it comes, and returns them all.
///
/// Bytes that are not UTF-8 are replaced: what a test prints may be anything.
pub(crate) fn follow(source: impl Read, mut on_line: impl FnMut(&str)) -> std::io::Result<String> {
    let mut source = BufReader::new(source);
    let mut all = String::new();
    let mut bytes = Vec::new();
    while source.read_until(b'\n', &mut bytes)? != 0 {
        let line = String::from_utf8_lossy(&bytes);
        on_line(line.trim_end_matches('\n'));
        all.push_str(&line);
        bytes.clear();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follow_gives_each_line_and_the_whole() {
        let mut lines = Vec::new();
        let all = follow(&b"one\ntwo \xff\n\nlast"[..], |line| {
            lines.push(line.to_owned())
        })
        .unwrap();
        assert_eq!(lines, ["one", "two \u{fffd}", "", "last"]);
        assert_eq!(all, "one\ntwo \u{fffd}\n\nlast");
    }

    #[test]
    fn a_failing_command_is_named_in_the_error() {
        let error = run("try", Announce::OnTerminal, Command::new("false").arg("x")).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("try") && text.contains("\"false\" \"x\""),
            "{text}"
        );
    }

    #[test]
    fn a_missing_command_is_an_error_and_not_a_hang() {
        let error = run(
            "try",
            Announce::OnTerminal,
            &mut Command::new("/nowhere/tool"),
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/tool"));
    }
}
