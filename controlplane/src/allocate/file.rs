//! The file that remembers who holds which ClusterIP and node port.

use std::collections::BTreeMap;
use std::path::Path;

use fairway_model::ObjectName;
use serde::{Deserialize, Serialize};

use super::{Allocation, Allocator, Ranges};

/// The file's contents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    services: BTreeMap<String, Allocation>,
}

/// Changes when an older version could misread what a newer one writes.
const VERSION: u32 = 1;

impl Allocator {
    /// One that remembers what `file` says; a missing file says nothing. A damaged one is an error:
    /// to begin anew would move Services to other addresses under their clients' feet.
    pub(crate) fn load(ranges: Ranges, file: &Path) -> Result<Self, String> {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::new(ranges));
            }
            Err(error) => return Err(error.to_string()),
        };
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| format!("it is damaged: {error}"))?;
        if state.version != VERSION {
            let found = state.version;
            return Err(format!("it has version {found}, this program reads version {VERSION}"));
        }
        let mut allocator = Self::new(ranges);
        for (name, allocation) in state.services {
            let (namespace, name) = name
                .split_once('/')
                .ok_or_else(|| format!("it is damaged: \"{name}\" is no Service's name"))?;
            let name = ObjectName::new(namespace, name);
            if let Some(other) = allocator.taken(&name, &allocation) {
                return Err(format!("it is damaged: {name} and {other} hold the same number"));
            }
            allocator.set(name, allocation);
        }
        Ok(allocator)
    }

    /// The file that [`Self::load`] reads.
    pub(crate) fn to_file(&self) -> Vec<u8> {
        let services = self.held.iter();
        let state = State {
            version: VERSION,
            services: services
                .map(|(name, allocation)| (name.to_string(), allocation.clone()))
                .collect(),
        };
        let mut bytes =
            serde_json::to_vec_pretty(&state).expect("numbers and names are plain data");
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_an_error() {
        let cidrs = vec!["10.96.0.0/24".parse().unwrap()];
        let ranges = Ranges::new(cidrs, 30000..=30001).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("allocations.json");
        let load = |contents: &str| {
            std::fs::write(&file, contents).unwrap();
            let loaded = Allocator::load(ranges.clone(), &file);
            loaded.map(|_| ()).unwrap_err()
        };
        assert!(load("").starts_with("it is damaged"));
        assert!(load("{\"version\":2,\"services\":{}}").contains("version 2"));
        let twice = r#"{"version":1,"services":{
            "a/b":{"clusterIPs":["10.96.0.1"],"nodePorts":{}},
            "a/c":{"clusterIPs":["10.96.0.1"],"nodePorts":{}}}}"#;
        assert_eq!(load(twice), "it is damaged: a/c and a/b hold the same number");
    }
}
