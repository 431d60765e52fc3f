//! What is wrong with the objects, in words a person can act on.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use tokio::sync::watch;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// While it lasts, the last good state of what it concerns stays in force, or it goes without what
    /// an older object has.
    Error,
    /// What it concerns is in force, but for the part that it names.
    Warning,
}

/// One thing that is wrong.
///
/// Displays as `web.yaml:12: Service shop/web: spec.ports[1].nodePort: 30080 is already taken by
/// shop/api`, without the parts that are not known. A warning says so before the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, as a path that begins with the folder's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The line in it, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The object, as `Service shop/web`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field in it, as `spec.ports[1].nodePort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong with it.
    pub message: String,
    /// How bad that is.
    pub severity: Severity,
}

impl Problem {
    /// One that concerns no file.
    pub fn general(message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            object: None,
            field: None,
            message: message.into(),
            severity: Severity::Error,
        }
    }

    /// One of a file as a whole.
    pub(crate) fn in_file(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { file: Some(file.into()), ..Self::general(message) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{}: ", Plain(part))?;
        }
        write!(f, "{}", Plain(&self.message))
    }
}

/// Logs what is new and what is over, and shows what there is.
pub fn report(shown: &watch::Sender<Vec<Problem>>, next: Vec<Problem>) {
    shown.send_if_modified(|current| {
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (current.iter().collect(), next.iter().collect());
        for problem in new.difference(&old) {
            tracing::warn!("{problem}");
        }
        for problem in old.difference(&new) {
            tracing::info!("resolved: {problem}");
        }
        let differs = old != new;
        *current = next;
        differs
    });
}

/// Text without control characters: what a manifest says must not steer the reader's terminal.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char.is_control() {
            true => write!(f, "{}", char.escape_default()),
            false => write!(f, "{char}"),
        })
    }
}
