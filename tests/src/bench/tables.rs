//! The agent's tables and memory, as the kernel shows them to anybody.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};

/// The key of a frontend: address, port (network order), protocol, scope.
type FrontendKey = [u8; 8];
/// Its record begins with the number of a list, a generation, and the list's length.
type Frontend = [u8; 24];
/// Number of a list, generation, slot.
type EndpointKey = [u8; 12];
/// Address, port, zeros.
type Endpoint = [u8; 8];

const TCP: u8 = 6;
/// Of a second, in which the kernel tells times (`USER_HZ`).
const TICKS: u64 = 100;
/// `fairway_abi::scope::INTERNAL`.
const INTERNAL: u8 = 0;

/// The tables of Services over IPv4.
pub(super) struct Tables {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
}

impl Tables {
    /// Opens the tables that are pinned below a folder of one agent.
    pub(super) fn open(bpffs: &Path) -> Result<Self> {
        let open = |name: &str| {
            let pin = bpffs.join("tables").join(name);
            MapData::from_pin(&pin).with_context(|| format!("open table {}", pin.display()))
        };
        Ok(Self {
            frontends: HashMap::try_from(Map::HashMap(open("frontends4")?))?,
            endpoints: HashMap::try_from(Map::HashMap(open("endpoints4")?))?,
        })
    }

    /// The addresses that a Service leads to from inside the cluster.
    pub(super) fn endpoints(&self, service: Ipv4Addr, port: u16) -> Result<Vec<Ipv4Addr>> {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&service.octets());
        key[4..6].copy_from_slice(&port.to_be_bytes());
        (key[6], key[7]) = (TCP, INTERNAL);
        let Some(record) = found(self.frontends.get(&key, 0))? else { return Ok(Vec::new()) };
        let length = u32::from_ne_bytes(record[8..12].try_into()?);
        let mut all = Vec::new();
        for slot in 0..length {
            let mut key = [0; 12];
            key[..8].copy_from_slice(&record[..8]);
            key[8..].copy_from_slice(&slot.to_ne_bytes());
            if let Some([a, b, c, d, ..]) = found(self.endpoints.get(&key, 0))? {
                all.push(Ipv4Addr::new(a, b, c, d));
            }
        }
        Ok(all)
    }
}

fn found<T>(looked_up: Result<T, MapError>) -> Result<Option<T>> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("look into a table"),
    }
}

/// Memory of a process, in megabytes (of 10^6 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// In RAM now.
    pub resident: f64,
    /// The most that ever was.
    pub peak: f64,
    /// The kernel's, of the tables that the process has open.
    pub tables: f64,
}

impl Memory {
    /// That of a running process.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
        let kilobytes = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let number: f64 = number.with_context(|| format!("find {name}"))?.parse()?;
            Ok(number * 1024.0 / 1e6)
        };
        Ok(Self {
            resident: kilobytes("VmRSS:")?,
            peak: kilobytes("VmHWM:")?,
            tables: tables(pid)? / 1e6,
        })
    }
}

/// The processor's time that a process has taken so far, to a hundredth of a second.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read its times")?;
    // The name may hold anything, but a parenthesis ends it. User's and kernel's are fields 14 and 15.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let times: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|time| time.parse().ok()).collect();
    let [user, kernel] = times[..] else { bail!("unreadable times in {stat:?}") };
    Ok(Duration::from_millis((user + kernel) * 1000 / TICKS))
}

/// Bytes of the tables that a process has open, each once.
fn tables(pid: u32) -> Result<f64> {
    let mut tables = BTreeMap::new();
    let folder = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        // One may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            tables.insert(id, f64::from(bytes));
        }
    }
    Ok(tables.values().sum())
}
