//! How many entries the large tables have room for. One of another size takes the place of one that is in
//! use as `handover` says.

use std::fmt;
use std::str::FromStr;

use super::Declared;

/// How much one of the large tables is to hold, as it is typed: `NAME=NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    of: Of,
    number: u32,
}

/// What a capacity is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Flows,
    HalfOpenFlows,
    UdpSockets,
    Affinity,
    Frontends,
    Endpoints,
    Identities,
    AddressRanges,
    Rulings,
    Names,
}

/// Names, and how many entries of which tables one of them takes.
const ALL: [(&str, Of, u32, &[&str]); 10] = [
    ("flows", Of::Flows, 2, &["flows4", "flows6"]),
    ("half-open-flows", Of::HalfOpenFlows, 2, &["half_open4", "half_open6"]),
    ("udp-sockets", Of::UdpSockets, 1, &["sockets4", "sockets6"]),
    ("affinity", Of::Affinity, 1, &["affinity4", "affinity6"]),
    ("frontends", Of::Frontends, 1, &["frontends4", "frontends6"]),
    (
        "endpoints",
        Of::Endpoints,
        1,
        &["endpoints4", "endpoints6", "members4", "members6", "shares4", "shares6"],
    ),
    ("identities", Of::Identities, 1, &["identities4", "identities6"]),
    ("address-ranges", Of::AddressRanges, 1, &["blocks4", "blocks6"]),
    ("rulings", Of::Rulings, 1, &["rulings"]),
    ("names", Of::Names, 1, &["names"]),
];

impl Capacity {
    /// Fewer make no sense on any node; more take memory for their buckets alone.
    const BOUNDS: std::ops::RangeInclusive<u32> = 64..=16_777_216;

    /// The tables that it is about, and the entries that each of them is to have room for.
    fn tables(self) -> impl Iterator<Item = (&'static str, u32)> {
        let about = ALL.into_iter().filter(move |(_, of, ..)| *of == self.of);
        about.flat_map(move |(_, _, entries, tables)| {
            tables.iter().map(move |table| (*table, self.number * entries))
        })
    }
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || ALL.map(|(name, ..)| name).join(", ");
        let (name, number) = text.split_once('=').ok_or("must look like flows=500000")?;
        let known = ALL.iter().find(|(known, ..)| *known == name.trim());
        let (_, of, ..) = known.ok_or_else(|| format!("{name:?} is none of {}", names()))?;
        let number: u32 = number.trim().parse().map_err(|error| format!("{number:?}: {error}"))?;
        if !Self::BOUNDS.contains(&number) {
            let (least, most) = (Self::BOUNDS.start(), Self::BOUNDS.end());
            return Err(format!("{number} is not within {least} and {most}"));
        }
        Ok(Self { of: *of, number })
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALL.into_iter().find(|(_, of, ..)| *of == self.of).map_or("", |(name, ..)| name);
        write!(f, "{name}={}", self.number)
    }
}

/// What the capacity of a table is called; none if it is always the same.
pub(super) fn name_of(table: &str) -> Option<&'static str> {
    let about = ALL.into_iter().find(|(.., tables)| tables.contains(&table));
    about.map(|(name, ..)| name)
}

/// Gives tables the sizes that are asked for; of two that are for the same, the latter counts.
pub(super) fn apply(capacities: &[Capacity], tables: &mut [Declared]) {
    for (name, entries) in capacities.iter().flat_map(|capacity| capacity.tables()) {
        if let Some(table) = tables.iter_mut().find(|table| table.name == name) {
            table.max_entries = entries;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_names_what_it_is_of() {
        let read = |text: &str| text.parse::<Capacity>();
        let flows = read("flows=1000").expect("a capacity");
        assert_eq!(flows.tables().collect::<Vec<_>>(), [("flows4", 2000), ("flows6", 2000)]);
        assert_eq!(flows.to_string(), "flows=1000");
        let endpoints = read("endpoints = 64").expect("a capacity");
        assert_eq!(endpoints.tables().count(), 6);
        for bad in
            ["flows", "flows=", "flows=0", "flows=63", "flows=16777217", "flows=-1", "flow=1000"]
        {
            let error = read(bad).expect_err(bad);
            assert!(!error.is_empty());
        }
        assert!(read("flow=1000").expect_err("no such name").contains("half-open-flows"));
    }

    #[test]
    fn every_name_leads_to_tables_that_can_change_their_size() {
        for table in ALL.into_iter().flat_map(|(.., tables)| tables) {
            // Nobody notices that these are written anew.
            let is_kept = crate::dataplane::POLICIES.contains(table) || *table == "names";
            assert!(crate::dataplane::handover::is_kept(table) || is_kept, "{table}");
        }
    }
}
