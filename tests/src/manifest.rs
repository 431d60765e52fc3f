//! Kubernetes YAML as users write it: files and folders, several documents a file, Lists.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::objects::{Document, Key};
use crate::spec;

/// What files held.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Manifests {
    /// Checked objects in the order they were written.
    pub objects: Vec<(Key, Value)>,
    /// Names of what a lab has no use for.
    pub skipped: Vec<String>,
}

impl Manifests {
    /// The identities of its objects.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.objects.iter().map(|(key, _)| key.clone()).collect()
    }
}

/// Reads files, folders (all `.yaml`, `.yml` and `.json` below them, in path order) and, as `-`,
/// standard input. Any mistake refuses the whole, so that nothing is half applied.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Manifests> {
    let mut manifests = Manifests::default();
    for path in paths {
        if path.as_os_str() == "-" {
            let text = std::io::read_to_string(std::io::stdin()).context("read standard input")?;
            parse(&text, &mut manifests).context("standard input")?;
            continue;
        }
        for file in files(path)? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            parse(&text, &mut manifests).with_context(|| file.display().to_string())?;
        }
    }
    Ok(manifests)
}

/// Takes the objects of one file's text into `manifests`.
pub(crate) fn parse(text: &str, manifests: &mut Manifests) -> Result<()> {
    // The parser's own message has line and column.
    let options = serde_saphyr::options! {
        strict_booleans: true, // a pod may be called "n"
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).context("not valid YAML")?;
    for document in documents {
        take(document, manifests)?;
    }
    Ok(())
}

fn take(document: Value, manifests: &mut Manifests) -> Result<()> {
    if let Some(kind) = document.get("kind").and_then(Value::as_str)
        && kind.ends_with("List")
        && let Some(items) = document.get("items")
    {
        let Value::Array(items) = items else {
            bail!("{kind}: items: not a list");
        };
        return items.iter().try_for_each(|item| take(item.clone(), manifests));
    }
    match Document::of(document)? {
        Document::Object(key, object) => {
            spec::check(&key, &object)?;
            if manifests.objects.iter().any(|(other, _)| *other == key) {
                bail!("{key}: appears twice");
            }
            manifests.objects.push((key, object));
        }
        Document::Unknown(name) => manifests.skipped.push(name),
    }
    Ok(())
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let about = fs::metadata(path).with_context(|| format!("read {}", path.display()))?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let list = || format!("list {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(list)? {
            let entry = entry.with_context(list)?;
            let kind = entry.file_type().with_context(list)?;
            let file = entry.path();
            if kind.is_dir() {
                folders.push(file);
            } else if is_manifest(&file) {
                found.push(file);
            }
        }
    }
    if found.is_empty() {
        bail!("{}: no .yaml, .yml or .json file in it", path.display());
    }
    found.sort();
    Ok(found)
}

fn is_manifest(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Manifests> {
        let mut manifests = Manifests::default();
        parse(text, &mut manifests)?;
        Ok(manifests)
    }

    fn guestbook() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/guestbook")
    }

    #[test]
    fn documents_lists_and_unknown_kinds() {
        let manifests = read_text(
            "---\n\
             # only a comment\n\
             ---\n\
             {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}}\n\
             ---\n\
             {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}}\n\
             ---\n\
             apiVersion: v1\n\
             kind: List\n\
             items:\n\
             - {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n",
        )
        .unwrap();
        let names: Vec<String> = manifests.objects.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(names, ["Service shop/web", "Namespace shop"]);
        assert_eq!(manifests.skipped, ["ServiceCIDR more"]);
    }

    #[test]
    fn mistakes_name_place_and_object() {
        let check = |text: &str, expected: &str| {
            let error = format!("{:#}", read_text(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("kind: Pod\n  bad: [indent\n", "line 2");
        check("just text", "kind: missing");
        check(
            "{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n\
             {apiVersion: v1, kind: Service, metadata: {name: a}}",
            "Service default/a: appears twice",
        );
        check("{kind: List, items: 3}", "items: not a list");
        check("{apiVersion: v1, kind: Node, metadata: {name: n}}", "makes its own nodes");
    }

    #[test]
    fn the_classic_guestbook_is_read_unmodified() {
        let manifests = read(&[guestbook()]).unwrap();
        assert_eq!(manifests.objects.len(), 6);
        assert!(manifests.skipped.is_empty());
    }

    #[test]
    fn missing_and_empty_folders_are_errors() {
        let error = read(&[PathBuf::from("/nonexistent/x.yaml")]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x.yaml"));
        let error = read(&[PathBuf::from("/proc/self/fdinfo")]).unwrap_err();
        assert!(error.to_string().contains("no .yaml"), "{error}");
    }
}
