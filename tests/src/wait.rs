//! Waiting for a state, with an end.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `is_there` says so. After `limit` it gives up and says what it waited for, and the
/// last reason why it was not there if there was one.
pub fn wait_until(
    limit: Duration,
    what: &str,
    mut is_there: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let outcome = is_there();
        if let Ok(true) = outcome {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seconds = limit.as_secs_f32();
            match outcome {
                Ok(_) => bail!("waited {seconds:.1} s for {what}"),
                Err(error) => {
                    return Err(error.context(format!("waited {seconds:.1} s for {what}")));
                }
            }
        }
        thread::sleep(INTERVAL);
    }
}
