//! What to give back if a call does not get to its end.

use std::fmt;

/// Steps to be taken back in reverse order. Each owns what it needs, so that none depends on how
/// far the function that registered it came. They run when [`roll_back`](Undo::roll_back) is
/// called, or on drop, unless [`disarm`](Undo::disarm)ed.
#[derive(Default)]
pub(crate) struct Undo {
    steps: Vec<Box<dyn FnOnce() -> Result<(), String>>>,
}

impl Undo {
    /// Registers how to take back what was just done.
    pub(crate) fn push<E: fmt::Display>(&mut self, step: impl FnOnce() -> Result<(), E> + 'static) {
        self.steps.push(Box::new(move || step().map_err(|error| error.to_string())));
    }

    /// Takes everything back; a step that fails does not stop those after it.
    pub(crate) fn roll_back(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some(step) = self.steps.pop() {
            failures.extend(step().err().map(|error| format!("undo: {error}")));
        }
        failures
    }

    /// All is well: nothing is to be taken back any more.
    pub(crate) fn disarm(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for failure in self.roll_back() {
            eprintln!("fairway-cni: {failure}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    fn steps(log: &Rc<RefCell<Vec<u32>>>) -> Undo {
        let mut undo = Undo::default();
        for n in [1, 2, 3] {
            let log = log.clone();
            undo.push(move || {
                log.borrow_mut().push(n);
                if n == 2 { Err("two") } else { Ok(()) }
            });
        }
        undo
    }

    #[test]
    fn steps_run_backwards_once_and_all_of_them() {
        let log = Rc::default();
        let mut undo = steps(&log);
        assert_eq!(undo.roll_back(), ["undo: two"]);
        drop(undo);
        assert_eq!(*log.borrow(), [3, 2, 1]);
        drop(steps(&log));
        assert_eq!(log.borrow().len(), 6);
        steps(&log).disarm();
        assert_eq!(log.borrow().len(), 6);
    }
}
