//! The time of answers that do not tell it themselves.

use std::cell::RefCell;
use std::time::SystemTime;

use crate::record::http_date;

thread_local! {
    /// Seconds since 1970, and the same in words.
    static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Hands over what is to stand in `Date` now; it is put into words once a second.
pub(crate) fn with<T>(take: impl FnOnce(&str) -> T) -> T {
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(last, date)| {
        if *last != seconds || date.is_empty() {
            (*last, *date) = (seconds, http_date(now));
        }
        take(date)
    })
}
