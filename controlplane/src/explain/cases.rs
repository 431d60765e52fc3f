//! Tests of policies, as teams write them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Answer, Cluster, Destination, NoAnswer};

/// One case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    from: String,
    to: String,
    #[serde(default)]
    port: Option<PortText>,
    #[serde(default)]
    protocol: Option<String>,
    expect: Expected,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PortText {
    Number(u32),
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allow,
    Deny,
}

/// A case that is not as it is expected, or is no case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    file: PathBuf,
    line: u64,
    message: String,
    /// What is so instead.
    answers: Vec<Answer>,
}

/// Asks all cases of a file: a list of `{from, to, port, protocol, expect: allow | deny}`. How many there are,
/// and those that fail.
///
/// # Errors
/// The file cannot be read, or is no such list.
pub fn run_cases(cluster: &mut Cluster, file: &Path) -> anyhow::Result<(usize, Vec<Failure>)> {
    use anyhow::Context as _;

    let about = || format!("cases in {}", file.display());
    let text = std::fs::read_to_string(file).with_context(about)?;
    let cases: Vec<Spanned<Case>> = serde_saphyr::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))
        .with_context(about)?;
    let failures = cases.iter().filter_map(|case| {
        let (message, answers) = run(cluster, &case.value).err()?;
        Some(Failure { file: file.to_owned(), line: case.referenced.line(), message, answers })
    });
    let failures = failures.collect();
    Ok((cases.len(), failures))
}

/// Why it fails, and what is so.
fn run(cluster: &mut Cluster, case: &Case) -> Result<(), (String, Vec<Answer>)> {
    let wrong = |message: String| (message, Vec::new());
    let from = case.from.parse().map_err(wrong)?;
    let protocol = case.protocol.as_deref();
    let port = match (&case.port, protocol) {
        (None, Some(icmp)) if icmp.eq_ignore_ascii_case("icmp") => "icmp".to_owned(),
        (None, _) => return Err(wrong("needs a port, or protocol ICMP".to_owned())),
        (Some(PortText::Number(number)), _) => number.to_string(),
        (Some(PortText::Name(name)), _) => name.clone(),
    };
    let port = match protocol {
        Some(protocol) if port != "icmp" => format!("{port}/{protocol}"),
        _ => port,
    };
    let who = case.to.parse().map_err(wrong)?;
    let to = Destination { who, port: port.parse().map_err(wrong)? };
    let failed = |error: NoAnswer| wrong(format!("{from} -> {to}: {error}"));
    let is_other = |answer: &Answer| answer.allowed != (case.expect == Expected::Allow);
    if !cluster.answers(&from, &to, false).map_err(failed)?.iter().any(is_other) {
        return Ok(());
    }
    let mut other = cluster.explain(&from, &to).map_err(failed)?;
    other.retain(is_other);
    let expected = match case.expect {
        Expected::Allow => "to be allowed, and is denied",
        Expected::Deny => "to be denied, and is allowed",
    };
    Err((format!("{from} -> {to}: expected {expected}"), other))
}

/// As `cases.yaml:3: pod/shop/web -> ...`, with what decided below.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, message, answers } = self;
        writeln!(f, "{}:{line}: {message}", file.display())?;
        for answer in answers {
            for line in answer.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
