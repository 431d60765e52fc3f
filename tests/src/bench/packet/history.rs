//! Earlier figures, one a line, so that a change shows.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The first line of the file.
const HEADER: &str = "date,revision,kernel,program,path,family,ns,ratio,verified";

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// `2026-11-28`, UTC.
    pub date: String,
    /// The commit, shortened, and `+` if the files were not its.
    pub revision: String,
    /// The kernel's release.
    pub kernel: String,
    /// The program.
    pub program: String,
    /// Which way through it.
    pub path: String,
    /// 4 or 6.
    pub family: u8,
    /// A run's time beyond that of the program that does nothing, in nanoseconds.
    pub nanos: f64,
    /// The time of a run, in that of a run of the program that does nothing.
    pub ratio: f64,
    /// Instructions that the verifier walked through.
    pub verified: u32,
}

impl Record {
    fn line(&self) -> String {
        let Self { date, revision, kernel, program, path, family, nanos, ratio, verified } = self;
        format!(
            "{date},{revision},{kernel},{program},{path},{family},{nanos:.1},{ratio:.3},{verified}"
        )
    }

    fn read(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [date, revision, kernel, program, path, family, nanos, ratio, verified] = fields[..]
        else {
            bail!("{} fields instead of nine", fields.len());
        };
        let text = str::to_owned;
        Ok(Self {
            date: text(date),
            revision: text(revision),
            kernel: text(kernel),
            program: text(program),
            path: text(path),
            family: family.parse().context("family")?,
            nanos: nanos.parse().context("ns")?,
            ratio: ratio.parse().context("ratio")?,
            verified: verified.parse().context("verified")?,
        })
    }

    /// Whether this is about the same packets.
    pub(super) fn is_of(&self, program: &str, path: &str, family: u8) -> bool {
        (self.program.as_str(), self.path.as_str(), self.family) == (program, path, family)
    }
}

/// What a file holds, the oldest first; nothing if there is no file.
pub(super) fn load(file: &Path) -> Result<Vec<Record>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    parse(&text).with_context(|| format!("read {}", file.display()))
}

fn parse(text: &str) -> Result<Vec<Record>> {
    let mut lines = text.lines().zip(1..);
    match lines.next() {
        None => return Ok(Vec::new()),
        Some((HEADER, _)) => {}
        Some((other, _)) => bail!("line 1: expected {HEADER:?}, not {other:?}"),
    }
    lines
        .map(|(line, number)| Record::read(line).with_context(|| format!("line {number}")))
        .collect()
}

/// Adds to a file, which is made if there is none.
pub(super) fn append(file: &Path, records: &[Record]) -> Result<()> {
    let fresh = !file.exists();
    let mut lines: Vec<String> = fresh.then(|| HEADER.to_owned()).into_iter().collect();
    for record in records {
        let line = record.line();
        // Nothing is quoted, so a comma in a field would spoil the file.
        Record::read(&line).with_context(|| format!("write {line:?}"))?;
        lines.push(line);
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let mut open = OpenOptions::new();
    let opened = open.create(true).append(true).open(file);
    opened
        .and_then(|mut file| file.write_all((lines.join("\n") + "\n").as_bytes()))
        .with_context(|| format!("append to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            date: "2026-11-28".to_owned(),
            revision: "8919fd8+".to_owned(),
            kernel: "6.18.5".to_owned(),
            program: "pod_ingress".to_owned(),
            path: "ClusterIP hit".to_owned(),
            family: 4,
            nanos: 321.5,
            ratio: 6.125,
            verified: 235_041,
        }
    }

    #[test]
    fn what_is_appended_is_read_again_in_the_same_order() {
        let file = std::env::temp_dir().join(format!("fairway-history-{}", std::process::id()));
        let file = file.join("packet.csv");
        assert_eq!(load(&file).unwrap(), []);
        let other = Record { family: 6, ..record() };
        append(&file, &[record()]).unwrap();
        append(&file, std::slice::from_ref(&other)).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let read = load(&file).unwrap();
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
        assert_eq!(read, [record(), other]);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "2026-11-28,8919fd8+,6.18.5,pod_ingress,ClusterIP hit,4,321.5,6.125,235041"
        );
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let file = std::env::temp_dir().join(format!("fairway-comma-{}.csv", std::process::id()));
        let spoilt = Record { path: "hit, pod".to_owned(), ..record() };
        let error = append(&file, &[record(), spoilt]).unwrap_err();
        assert!(format!("{error:#}").contains("10 fields"), "{error:#}");
        assert!(!file.exists());
    }

    #[test]
    fn what_cannot_be_read_names_its_line() {
        let line = record().line();
        for (text, complaint) in [
            (format!("{HEADER}\n{line}\nnonsense\n"), "line 3"),
            (format!("{HEADER}\n{}\n", line.replace("6.125", "much")), "line 2"),
            (format!("{line}\n"), "line 1"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.starts_with(complaint), "{error}");
        }
    }
}
