//! The names of lists, and whether they are those of the tables that were read.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use fairway_compile::Family;

use super::maps::config;
use crate::dataplane::Pinned;
use crate::names::{Name, NameTable, Rule};

/// How often names are looked at again that do not fit, and how long between: a running agent writes
/// them within this time.
const LOOKS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(50);

/// The names as the file has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    table: NameTable,
    /// The revision that the kernel's tables had before and after they were read.
    tables: (u32, u32),
}

/// Reads tables, and the names that go with them. `read` gets the names for what it has to look up by
/// them; it may be called more than once, if lists come or go meanwhile.
pub(crate) fn with_names<T>(
    pinned: &Pinned,
    state_dir: &Path,
    mut read: impl FnMut(&Known) -> Result<T>,
) -> Result<(T, Known)> {
    let mut look = 0;
    loop {
        let before = config(pinned)?.names;
        let mut known = Known { table: NameTable::read(state_dir)?, tables: (before, before) };
        let fits = known.fit();
        look += 1;
        if !fits && look < LOOKS {
            thread::sleep(BETWEEN);
            continue;
        }
        let found = read(&known)?;
        known.tables.1 = config(pinned)?.names;
        if !fits || known.fit() || look >= LOOKS {
            return Ok((found, known));
        }
    }
}

impl Known {
    /// What the file has, however the tables are changing.
    pub(crate) fn read(pinned: &Pinned, state_dir: &Path) -> Result<Self> {
        let tables = config(pinned)?.names;
        Ok(Self { table: NameTable::read(state_dir)?, tables: (tables, tables) })
    }

    /// Only these rules.
    #[cfg(test)]
    pub(crate) fn of_rules(rules: impl IntoIterator<Item = (u32, Rule)>) -> Self {
        let rules = rules.into_iter().collect();
        Self { table: NameTable { rules, ..NameTable::default() }, ..Self::default() }
    }

    /// Whether every name is that of the list which was read under its number.
    pub(crate) fn fit(&self) -> bool {
        let Self { table, tables } = self;
        table.revision != 0 && *tables == (table.revision, table.revision)
    }

    /// What a list of this family is, as far as the file knows.
    pub(crate) fn name<A: Family>(&self, number: u32) -> Option<&Name> {
        if A::BITS == 32 { self.table.v4.get(&number) } else { self.table.v6.get(&number) }
    }

    /// What a rule of a policy is, as far as the file knows.
    pub(crate) fn rule(&self, number: u32) -> Option<&Rule> {
        self.table.rules.get(&number)
    }

    /// How many rules of policies have a name.
    pub(crate) fn rules(&self) -> usize {
        self.table.rules.len()
    }

    /// Every list of this family with its name.
    pub(crate) fn names<A: Family>(&self) -> impl Iterator<Item = (u32, &Name)> {
        let names = if A::BITS == 32 { &self.table.v4 } else { &self.table.v6 };
        names.iter().map(|(number, name)| (*number, name))
    }

    /// What a person has to know of the names, if they may be wrong.
    pub(crate) fn doubt(&self) -> Option<String> {
        if self.fit() {
            return None;
        }
        let (file, tables) = (self.table.revision, self.tables.1);
        Some(match (file, tables) {
            (0, _) => "no names are known: the agent has not written any".to_owned(),
            (file, 0) => format!(
                "names with a ? may be stale: they are of revision {file}, and lists were being changed \
                 when the tables were read or the agent ended"
            ),
            (file, tables) => format!(
                "names with a ? may be stale: they are of revision {file}, the tables of {tables}"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_tables_of_their_own_revision_before_and_after() {
        let known = |revision, tables| Known {
            table: NameTable { revision, ..NameTable::default() },
            tables,
        };
        assert_eq!(known(7, (7, 7)).doubt(), None);
        for (doubted, says) in [
            (known(7, (8, 8)), "they are of revision 7, the tables of 8"),
            (known(7, (7, 8)), "they are of revision 7, the tables of 8"),
            (known(7, (7, 0)), "lists were being changed"),
            (known(0, (0, 0)), "no names are known"),
        ] {
            let doubt = doubted.doubt().expect("a doubt");
            assert!(doubt.contains(says), "{doubt}");
        }
    }
}
