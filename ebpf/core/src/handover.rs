//! Two sets of flow tables while one takes the place of the other: a set of another size, or of another
//! version of the programs.
//!
//! ```text
//! phase       in force                  what is new goes into    looked up in
//! SWITCHING   old and new programs      the old tables           new programs: both
//! DRAINING    new programs alone        the new tables           both, new first
//! ```
//!
//! Old programs know their own tables only. Until the last of them is gone, new ones therefore write there
//! alone, and both see every flow, whoever opened it. Then the agent moves to the next phase, copies what
//! is in the old tables to the new ones, and ends them. Each step waits until no program is at work that
//! began before it.
//!
//! A record is in one of the two sets, or in both as a copy, which the new set's comes before; so each
//! operation is that operation on both. While programs that read different phases are at work for a
//! moment, one may write here and the other there: each looks at the other set after it has written, and
//! takes back what it wrote if something is there. Both may do so, and then neither has it; the packet is
//! dropped and sent again.

use fairway_abi::{Address, Flow, FlowKey, phase};

use crate::tables::Stage;

/// A set of flow tables; see [`Tables`](crate::Tables) for what each operation does.
pub trait FlowSet<A: Address> {
    /// Shows the stored record to `seen`, which may bring it up to date; false if there is none.
    fn see(&self, stage: Stage, key: &FlowKey<A>, seen: impl FnMut(&mut Flow<A>)) -> bool;
    /// Whether there is a record under the key.
    fn has(&self, stage: Stage, key: &FlowKey<A>) -> bool;
    /// Adds a record if there is none under the key.
    fn insert(&self, stage: Stage, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Copies a half-open record to the established ones.
    fn promote(&self, key: &FlowKey<A>) -> bool;
    /// Forgets a record.
    fn remove(&self, stage: Stage, key: &FlowKey<A>);
}

/// A set and the one before it, as one.
#[derive(Clone, Copy, Debug)]
pub struct Both<O, B> {
    /// The programs' own.
    pub own: O,
    /// The one whose place it takes.
    pub before: B,
    /// One of [`phase`], read before anything is looked up.
    pub phase: u32,
}

impl<O, B> Both<O, B> {
    /// Whether there is something to find in the set before.
    #[inline(always)]
    fn is_under_way(&self) -> bool {
        self.phase == phase::SWITCHING || self.phase == phase::DRAINING
    }
}

impl<A: Address, O: FlowSet<A>, B: FlowSet<A>> FlowSet<A> for Both<O, B> {
    #[inline(always)]
    fn see(&self, stage: Stage, key: &FlowKey<A>, mut seen: impl FnMut(&mut Flow<A>)) -> bool {
        self.own.see(stage, key, &mut seen)
            || self.is_under_way() && self.before.see(stage, key, &mut seen)
    }

    #[inline(always)]
    fn has(&self, stage: Stage, key: &FlowKey<A>) -> bool {
        self.own.has(stage, key) || self.is_under_way() && self.before.has(stage, key)
    }

    #[inline(always)]
    fn insert(&self, stage: Stage, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        if self.phase == phase::SWITCHING {
            let alone = self.before.insert(stage, key, flow);
            if alone && self.own.has(stage, key) {
                self.before.remove(stage, key);
                return false;
            }
            return alone;
        }
        let alone = self.own.insert(stage, key, flow);
        if alone && self.phase == phase::DRAINING && self.before.has(stage, key) {
            self.own.remove(stage, key);
            return false;
        }
        alone
    }

    /// Where the half-open one is: a copy is as good as it.
    #[inline(always)]
    fn promote(&self, key: &FlowKey<A>) -> bool {
        self.own.promote(key) || self.is_under_way() && self.before.promote(key)
    }

    #[inline(always)]
    fn remove(&self, stage: Stage, key: &FlowKey<A>) {
        self.own.remove(stage, key);
        if self.is_under_way() {
            self.before.remove(stage, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use fairway_abi::V4;
    use zerocopy::native_endian::U32;
    use zerocopy::network_endian::U16;

    use super::*;

    /// Half-open and established records.
    #[derive(Default)]
    struct Set([RefCell<HashMap<FlowKey<V4>, Flow<V4>>>; 2]);

    impl Set {
        fn of(&self, stage: Stage) -> &RefCell<HashMap<FlowKey<V4>, Flow<V4>>> {
            &self.0[usize::from(matches!(stage, Stage::Established))]
        }
    }

    impl FlowSet<V4> for &Set {
        fn see(&self, stage: Stage, key: &FlowKey<V4>, seen: impl FnMut(&mut Flow<V4>)) -> bool {
            self.of(stage).borrow_mut().get_mut(key).map(seen).is_some()
        }

        fn has(&self, stage: Stage, key: &FlowKey<V4>) -> bool {
            self.of(stage).borrow().contains_key(key)
        }

        fn insert(&self, stage: Stage, key: &FlowKey<V4>, flow: &Flow<V4>) -> bool {
            let absent = !self.has(stage, key);
            if absent {
                self.of(stage).borrow_mut().insert(*key, *flow);
            }
            absent
        }

        fn promote(&self, key: &FlowKey<V4>) -> bool {
            let flow = self.of(Stage::HalfOpen).borrow().get(key).copied();
            flow.is_some_and(|flow| self.insert(Stage::Established, key, &flow))
        }

        fn remove(&self, stage: Stage, key: &FlowKey<V4>) {
            self.of(stage).borrow_mut().remove(key);
        }
    }

    fn key(port: u16) -> FlowKey<V4> {
        FlowKey { source_port: U16::new(port), ..FlowKey::BLANK }
    }

    fn both<'a>(own: &'a Set, before: &'a Set, phase: u32) -> Both<&'a Set, &'a Set> {
        Both { own, before, phase }
    }

    #[test]
    fn while_programs_are_switched_either_kind_sees_what_the_other_does() {
        let (own, old) = (Set::default(), Set::default());
        let new = both(&own, &old, phase::SWITCHING);
        let old = &old;
        assert!(new.insert(Stage::HalfOpen, &key(1), &Flow::BLANK));
        assert!(old.insert(Stage::HalfOpen, &key(2), &Flow::BLANK));
        for port in [1, 2] {
            assert!(old.has(Stage::HalfOpen, &key(port)) && new.has(Stage::HalfOpen, &key(port)));
            assert!(!new.insert(Stage::HalfOpen, &key(port), &Flow::BLANK), "it is taken");
        }
        assert!(new.promote(&key(2)) && old.promote(&key(1)));
        assert!(new.see(Stage::Established, &key(1), |flow| flow.state = U32::new(7)));
        let mut state = 0;
        assert!(old.see(Stage::Established, &key(1), |flow| state = flow.state.get()));
        assert_eq!(state, 7);
        assert!(old.has(Stage::Established, &key(2)));
        new.remove(Stage::Established, &key(2));
        assert!(!old.has(Stage::Established, &key(2)));
        assert!(own.0.iter().all(|records| records.borrow().is_empty()), "nothing is there alone");
    }

    #[test]
    fn while_the_old_tables_end_a_copy_comes_before_what_it_is_of() {
        let (own, old) = (Set::default(), Set::default());
        let new = both(&own, &old, phase::DRAINING);
        let set = &old;
        for port in [1, 2] {
            assert!(set.insert(Stage::HalfOpen, &key(port), &Flow::BLANK));
        }
        let copy = Flow { state: U32::new(1), ..Flow::BLANK };
        assert!((&own).insert(Stage::HalfOpen, &key(1), &copy));
        let mut states = Vec::new();
        for port in [1, 2] {
            assert!(new.promote(&key(port)));
            new.remove(Stage::HalfOpen, &key(port));
            assert!(!new.has(Stage::HalfOpen, &key(port)));
            assert!(new.see(Stage::Established, &key(port), |flow| states.push(flow.state.get())));
        }
        assert_eq!(states, [1, 0]);
        assert!(!set.has(Stage::Established, &key(1)), "a copy is promoted to where it is");
        assert!(set.has(Stage::Established, &key(2)), "and what is old, too");
        assert!(new.insert(Stage::HalfOpen, &key(3), &Flow::BLANK));
        assert!(!set.has(Stage::HalfOpen, &key(3)), "what is new stays out of what ends");
    }

    #[test]
    fn programs_in_different_phases_never_both_take_a_key() {
        for order in [
            [phase::SWITCHING, phase::DRAINING],
            [phase::DRAINING, phase::SWITCHING],
            [phase::DRAINING, phase::DRAINING],
        ] {
            let (own, old) = (Set::default(), Set::default());
            let took = order.map(|phase| {
                both(&own, &old, phase).insert(Stage::HalfOpen, &key(1), &Flow::BLANK)
            });
            assert_eq!(took, [true, false], "{order:?}");
            let sets = [&own, &old];
            let there = sets.into_iter().filter(|set| set.has(Stage::HalfOpen, &key(1)));
            assert_eq!(there.count(), 1, "{order:?}");
        }
    }

    #[test]
    fn after_the_switch_the_old_tables_mean_nothing() {
        let (own, old) = (Set::default(), Set::default());
        assert!((&old).insert(Stage::Established, &key(1), &Flow::BLANK));
        for phase in [phase::NONE, phase::DONE] {
            let new = both(&own, &old, phase);
            assert!(!new.has(Stage::Established, &key(1)));
            new.remove(Stage::Established, &key(1));
            assert!((&old).has(Stage::Established, &key(1)));
        }
    }
}
