//! When which notice is to be said: no I/O, and time is an argument.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use fairway_controlplane::notices::{Notice, Notices, Reason};
use tokio::time::Instant;

use super::Options;

/// The longest pause after an error, or without anything to do.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often what was never said may fail, and still be new.
const FIRST_TRIES: u32 = 5;
/// How long it is known that something was said which does not hold any more.
const MEMORY: Duration = Duration::from_secs(3600);

/// See the module.
pub(super) struct Plan {
    options: Options,
    known: BTreeMap<Notice, State>,
    /// How many may be written at once, and since when that is so.
    tokens: u32,
    since: Instant,
}

/// Of a notice.
struct State {
    /// It holds.
    holds: bool,
    /// When it is to be said, if it holds by then; `None`: it was, and that was that.
    due: Option<Instant>,
    /// How often it was said, and when last.
    said: Option<(u64, Instant)>,
    failures: u32,
}

impl Plan {
    pub(super) fn new(options: Options, now: Instant) -> Self {
        Self { tokens: options.burst, options, known: BTreeMap::new(), since: now }
    }

    /// These hold, and no others.
    pub(super) fn want(&mut self, notices: &Notices, now: Instant) {
        for (notice, state) in &mut self.known {
            state.holds &= notices.contains(notice);
        }
        self.known.retain(|_, state| {
            state.holds || state.said.is_some_and(|(_, last)| now < last + MEMORY)
        });
        for notice in notices {
            // Whoever was told of no trouble need not be told that it is over.
            if notice.reason == Reason::Served && !self.was_told_of_trouble(notice) {
                continue;
            }
            let fresh = State { holds: false, due: None, said: None, failures: 0 };
            let state = self.known.entry(notice.clone()).or_insert(fresh);
            if !state.holds {
                state.holds = true;
                let settled = now + self.options.grace;
                let again = state.said.map(|(_, last)| last + self.options.again);
                state.due = Some(again.map_or(settled, |again| again.max(settled)));
            }
        }
    }

    fn was_told_of_trouble(&self, well: &Notice) -> bool {
        // All others of that object, as what is well comes last.
        let first =
            Notice { reason: Reason::AnnotationIgnored, note: String::new(), ..well.clone() };
        let mut others = self.known.range((Bound::Included(&first), Bound::Excluded(well)));
        others.any(|(notice, state)| notice.reason.is_grave() && state.said.is_some())
    }

    /// What is to be said now, and how often it was said, if it was here; or when to ask again. What is new goes before
    /// what was said or cannot be, and of that what is grave.
    pub(super) fn next(&mut self, now: Instant) -> Result<(Notice, Option<u64>), Instant> {
        let holding = self.known.iter().filter(|(_, state)| state.holds);
        let due = holding.filter_map(|(notice, state)| Some((state.due?, notice, state)));
        let first = due.min_by_key(|(due, notice, state)| {
            let is_new = state.said.is_none() && state.failures < FIRST_TRIES;
            let (is_late, is_grave) = (*due <= now, notice.reason.is_grave());
            (!is_late, is_late && !is_new, is_late && !is_grave, *due)
        });
        let Some((due, notice, state)) = first else {
            return Err(now + LONGEST_PAUSE);
        };
        if due > now {
            return Err(due);
        }
        let next = (notice.clone(), state.said.map(|(count, _)| count));
        while self.tokens < self.options.burst && now >= self.since + self.options.pause {
            self.tokens += 1;
            self.since += self.options.pause;
        }
        if self.tokens == self.options.burst {
            self.since = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => self.tokens = left,
            None => return Err(self.since + self.options.pause),
        }
        Ok(next)
    }

    /// It was said, so many times by now; or it was not, and not to be tried before that much time.
    pub(super) fn done(
        &mut self,
        notice: &Notice,
        now: Instant,
        done: Result<u64, Option<Duration>>,
    ) {
        let Some(state) = self.known.get_mut(notice) else { return };
        match done {
            Ok(count) => {
                (state.said, state.failures) = (Some((count, now)), 0);
                let repeated = notice.reason != Reason::Served;
                state.due = repeated.then(|| now + self.options.refresh);
            }
            Err(asked) => {
                let doubled =
                    self.options.first_pause * 2_u32.saturating_pow(state.failures.min(16));
                state.failures += 1;
                let pause = doubled.min(LONGEST_PAUSE).max(asked.unwrap_or_default());
                state.due = Some(now + pause);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fairway_controlplane::kubernetes::{Kind, ObjectId};
    use fairway_model::ObjectName;

    use super::*;

    fn notice(name: &str, reason: Reason) -> Notice {
        let object = ObjectId { kind: Kind::Ingress, name: ObjectName::new("shop", name) };
        Notice { object, uid: "u".to_owned(), reason, note: "so it is".to_owned() }
    }

    fn plan() -> (Plan, Instant) {
        let begin = Instant::now();
        let plan = Plan::new(Options { burst: 3, ..Options::new(String::new()) }, begin);
        (plan, begin)
    }

    /// What is said at that moment, with `count` as the answer of the server.
    fn said(plan: &mut Plan, now: Instant, count: u64) -> Vec<(Notice, Option<u64>)> {
        let mut all = Vec::new();
        while let Ok(next) = plan.next(now) {
            plan.done(&next.0, now, Ok(count));
            all.push(next);
        }
        all
    }

    #[test]
    fn what_holds_is_said_and_said_again_and_what_is_over_is_not() {
        let (mut plan, begin) = plan();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let wrong = notice("a", Reason::Refused);
        let all = Notices::from([wrong.clone()]);
        plan.want(&all, at(0));
        assert_eq!(plan.next(at(0)), Err(at(5)), "it may be mended before somebody reads it");
        plan.want(&Notices::new(), at(3));
        plan.want(&all, at(4));
        assert_eq!(plan.next(at(5)), Err(at(9)));
        assert_eq!(said(&mut plan, at(9), 1), [(wrong.clone(), None)]);
        plan.want(&all, at(10));
        assert_eq!(plan.next(at(10)), Err(at(1509)));
        assert_eq!(said(&mut plan, at(1509), 2), [(wrong.clone(), Some(1))]);
        // It comes and goes: at most every five minutes.
        for second in 1510..1520 {
            plan.want(&Notices::new(), at(second));
            plan.want(&all, at(second));
        }
        assert_eq!(plan.next(at(1520)), Err(at(1809)));
        assert_eq!(said(&mut plan, at(1809), 3), [(wrong, Some(2))]);
        plan.want(&Notices::new(), at(1810));
        assert!(plan.next(at(9000)).is_err());
        plan.want(&Notices::new(), at(9000));
        assert_eq!(plan.known.len(), 0, "nothing is remembered for ever");
    }

    #[test]
    fn it_is_told_once_that_it_is_over_to_whom_was_told_that_it_is_so() {
        let (mut plan, begin) = plan();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let (wrong, well) = (notice("a", Reason::BackendUnknown), notice("a", Reason::Served));
        let of = |notice: &Notice| Notices::from([notice.clone()]);
        plan.want(&of(&wrong), at(0));
        plan.want(&of(&well), at(1));
        assert!(plan.next(at(100)).is_err(), "nobody was told");
        plan.want(&of(&wrong), at(100));
        assert_eq!(said(&mut plan, at(105), 1).len(), 1);
        plan.want(&of(&well), at(110));
        assert_eq!(said(&mut plan, at(115), 1), [(well.clone(), None)]);
        plan.want(&of(&well), at(116));
        assert!(plan.next(at(7000)).is_err());
        // Of another one, and of a new one of that name, nothing was said.
        let mut other = well;
        other.uid = "v".to_owned();
        plan.want(&Notices::from([other, notice("b", Reason::Served)]), at(120));
        assert!(plan.next(at(130)).is_err());
        // What is merely not honoured does not end in being served.
        plan.want(&of(&notice("c", Reason::AnnotationIgnored)), at(130));
        assert_eq!(said(&mut plan, at(140), 1).len(), 1);
        plan.want(&of(&notice("c", Reason::Served)), at(150));
        assert!(plan.next(at(160)).is_err());
    }

    #[test]
    fn many_are_said_one_by_one() {
        let (mut plan, begin) = plan();
        let at = |milliseconds: u64| begin + Duration::from_millis(milliseconds);
        let all: Notices = (0..10).map(|at| notice(&format!("n{at}"), Reason::Refused)).collect();
        plan.want(&all, at(0));
        assert_eq!(said(&mut plan, at(5000), 1).len(), 3);
        assert_eq!(plan.next(at(5000)), Err(at(6000)));
        assert_eq!(said(&mut plan, at(6000), 1).len(), 1);
        assert_eq!(said(&mut plan, at(8500), 1).len(), 2);
        assert_eq!(said(&mut plan, at(60_000), 1).len(), 3);
        assert_eq!(said(&mut plan, at(61_000), 1).len(), 1);
        assert_eq!(plan.next(at(61_000)), Err(at(1_505_000)), "all were");
    }

    #[test]
    fn what_is_new_and_grave_goes_before_what_was_said() {
        let (mut plan, begin) = plan();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let old: Notices = (0..2000).map(|at| notice(&format!("n{at}"), Reason::Refused)).collect();
        plan.want(&old, at(0));
        for second in 5..2010 {
            said(&mut plan, at(second), 1);
        }
        assert!(plan.known.values().all(|state| state.said.is_some()), "each in its turn");
        let new = [
            notice("n1000", Reason::AnnotationIgnored),
            notice("n1001", Reason::AnnotationIgnored),
            notice("z", Reason::Denied),
        ];
        plan.want(&old.iter().cloned().chain(new.clone()).collect(), at(2010));
        for second in 2010..2016 {
            said(&mut plan, at(second), 1);
        }
        let told: Vec<_> = (2016..2020).flat_map(|second| said(&mut plan, at(second), 1)).collect();
        let told: Vec<_> = told.into_iter().map(|(notice, _)| notice).collect();
        let [one, other, denied] = new;
        assert_eq!((&told[..2], old.contains(&told[2])), (&[one, other][..], true));
        assert!(plan.known[&denied].said.is_some());
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_slowly_and_keeps_no_other_back() {
        let (mut plan, begin) = plan();
        let (one, other) = (notice("a", Reason::Refused), notice("b", Reason::Refused));
        plan.want(&Notices::from([one.clone(), other.clone()]), begin);
        let mut now = begin + Duration::from_secs(5);
        assert_eq!(plan.next(now).unwrap().0, one);
        plan.done(&one, now, Err(None));
        assert_eq!(said(&mut plan, now, 1), [(other, None)]);
        for pause in [2, 4, 8, 16] {
            let due = plan.next(now).unwrap_err();
            assert_eq!(due, now + Duration::from_secs(pause), "{pause}");
            now = due;
            assert_eq!(plan.next(now).unwrap().0, one);
            plan.done(&one, now, Err(None));
        }
        let due = plan.next(now).unwrap_err();
        plan.next(due).unwrap();
        plan.done(&one, due, Err(Some(Duration::from_secs(120))));
        assert_eq!(plan.next(due), Err(due + Duration::from_secs(120)), "as it was asked to");
    }
}
