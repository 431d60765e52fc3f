//! What owners of objects are to be told, for whoever tells them: in a cluster by Events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fairway_model::ObjectName;

use crate::kubernetes::{Kind, ObjectId};

/// The longest note, in bytes.
const LONGEST_NOTE: usize = 1000;
/// Of an object no more is told at a time.
const MOST: usize = 20;

/// What is to be told at the moment.
pub type Notices = BTreeSet<Notice>;

/// One thing that the owner of an object is to be told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The object.
    pub object: ObjectId,
    /// Its uid; empty where it is not known.
    pub uid: String,
    /// Why.
    pub reason: Reason,
    /// The field and what is wrong with it.
    pub note: String,
}

/// Why somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// An annotation is not honoured, or not known.
    AnnotationIgnored,
    /// It leads to a Service or a port that does not exist, or to something that is no Service.
    BackendUnknown,
    /// It was never good, and its requests are answered with 503.
    Denied,
    /// An older object has a path of it.
    PathTaken,
    /// It cannot be taken as it is.
    Refused,
    /// A Secret that it names is not there, may not be read, or cannot be used.
    SecretUnusable,
    /// It is served again.
    Served,
}

impl Reason {
    /// Whether requests fare worse for it than the owner wants.
    pub fn is_grave(self) -> bool {
        !matches!(self, Self::AnnotationIgnored | Self::Served)
    }
}

/// `SecretUnusable`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Ingresses that were in trouble, to tell when they are not any more.
#[derive(Default)]
pub(crate) struct Recoveries {
    /// Those in trouble, and those that were; with the uid.
    known: BTreeMap<ObjectName, (String, bool)>,
}

impl Recoveries {
    /// What is to be told: of `notices` what is not too much or too long, and which Ingresses are served again. `uid`
    /// is that of an Ingress of ours that is there.
    pub(crate) fn complete(
        &mut self,
        notices: impl IntoIterator<Item = Notice>,
        uid: impl Fn(&ObjectName) -> Option<String>,
    ) -> Notices {
        let mut all = Notices::new();
        for (_, in_trouble) in self.known.values_mut() {
            *in_trouble = false;
        }
        let notices: Notices = notices.into_iter().collect();
        for notice in notices.iter().filter(|notice| notice.reason.is_grave()) {
            self.known.insert(notice.object.name.clone(), (notice.uid.clone(), true));
        }
        // One of each reason goes before more of one, and what is grave before the rest; always in the same order, so
        // that the same ones are told each time.
        let mut before = BTreeMap::<_, usize>::new();
        let mut ranked = Vec::new();
        for notice in &notices {
            let seen = before.entry((&notice.object, notice.reason)).or_default();
            ranked.push((&notice.object, *seen > 0, !notice.reason.is_grave(), notice));
            *seen += 1;
        }
        ranked.sort();
        for of_object in ranked.chunk_by(|one, other| one.0 == other.0) {
            for (.., notice) in of_object.iter().take(MOST) {
                let mut notice = (*notice).clone();
                notice.note.truncate(notice.note.floor_char_boundary(LONGEST_NOTE));
                all.insert(notice);
            }
        }
        self.known
            .retain(|name, (known, in_trouble)| *in_trouble || uid(name).as_ref() == Some(known));
        let well = self.known.iter().filter(|(_, (_, in_trouble))| !in_trouble);
        all.extend(well.map(|(name, (uid, _))| Notice {
            object: ObjectId { kind: Kind::Ingress, name: name.clone() },
            uid: uid.clone(),
            reason: Reason::Served,
            note: "it is served again".to_owned(),
        }));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(name: &str, reason: Reason, note: &str) -> Notice {
        let object = ObjectId { kind: Kind::Ingress, name: ObjectName::new("shop", name) };
        Notice { object, uid: format!("{name}-1"), reason, note: note.to_owned() }
    }

    #[test]
    fn what_was_in_trouble_and_is_there_is_served_again() {
        let mut recoveries = Recoveries::default();
        let uid = |name: &ObjectName| Some(format!("{}-1", name.name));
        let refused = || notice("a", Reason::Refused, "x");
        let ignored = notice("a", Reason::AnnotationIgnored, "x");
        let served = notice("a", Reason::Served, "it is served again");
        assert_eq!(recoveries.complete([ignored.clone()], uid), [ignored.clone()].into());
        assert_eq!(recoveries.complete([refused()], uid), [refused()].into());
        let expected = Notices::from([ignored.clone(), served.clone()]);
        assert_eq!(recoveries.complete([ignored], uid), expected);
        assert_eq!(recoveries.complete([], uid), [served].into(), "as long as it is there");
        // Another one of that name was never in trouble.
        assert_eq!(recoveries.complete([], |_| Some("a-2".to_owned())), Notices::new());
        recoveries.complete([refused()], uid);
        assert_eq!(recoveries.complete([], |_| None), Notices::new(), "it is gone");
    }

    #[test]
    fn of_one_object_no_more_is_told_than_somebody_reads() {
        let many = (0..100).map(|at| notice("a", Reason::Refused, &format!("{at:03}")));
        let long = notice("b", Reason::Refused, &"\u{e9}".repeat(1000));
        let ignored =
            (0..100).map(|at| notice("c", Reason::AnnotationIgnored, &format!("{at:03}")));
        let grave = [Reason::Denied, Reason::PathTaken, Reason::SecretUnusable];
        let grave =
            grave.into_iter().flat_map(|reason| ["x", "y"].map(|note| notice("c", reason, note)));
        let grave: Vec<_> = grave.collect();
        let given = many.chain([long]).chain(ignored).chain(grave.iter().cloned());
        let all = Recoveries::default().complete(given, |_| None);
        let of = |name: &str| all.iter().filter(|of| of.object.name.name == name).count();
        assert_eq!((of("a"), of("b"), of("c")), (MOST, 1, MOST));
        assert!(grave.iter().all(|notice| all.contains(notice)), "what is grave goes first");
        assert!(all.iter().all(|notice| notice.note.len() <= LONGEST_NOTE));
    }
}
