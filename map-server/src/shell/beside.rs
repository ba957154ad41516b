//! What goes on beside the loop, and how is its end awaited?

use std::io;
use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use wg_device::stand_back;

use super::clock::Clock;
use super::store::Unsynced;

/// Pause between two times that the log is brought to the disk, which costs more than the registrations
/// of that time; at least so long, and so many times what the last time took, but no longer than that.
const SYNC_PAUSE: Duration = Duration::from_millis(20);
const SYNC_PAUSE_TIMES: u32 = 9;
const SYNC_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Waits for the disk, and leaves it alone for a moment then: while it works, who writes to it may have to wait.
///
/// # Errors
/// The disk fails, which is said at once.
pub(super) async fn sync(unsynced: Unsynced) -> io::Result<()> {
    let began = Clock::present();
    spawn_blocking(move || unsynced.sync()).await??;
    let took = began.elapsed();
    sleep((took * SYNC_PAUSE_TIMES).clamp(SYNC_PAUSE, SYNC_PAUSE_MAX)).await;
    Ok(())
}

/// Does long work in a thread of its own, which stands back: on one processor it would keep questions waiting.
pub(super) fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, result) = oneshot::channel();
    Builder::new().name("store".to_owned()).spawn(move || {
        stand_back();
        // Nobody waits for it any more when the server ends.
        done.send(work()).unwrap_or_default();
    })?;
    Ok(result)
}

/// Waits for work in the background; for ever if there is none.
pub(super) async fn finished<F: Future + Unpin>(work: &mut Option<F>) -> F::Output {
    match work {
        Some(handle) => handle.await,
        None => std::future::pending().await,
    }
}
