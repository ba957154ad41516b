//! Who runs first where there are fewer processors than threads?

/// How far a thread that has time stands back, at least: it gets about a tenth of what another one gets.
const NICE: libc::c_int = 10;

/// Lets other threads run before this one, from now on. Where the system refuses, it goes on as before.
#[expect(unsafe_code, reason = "no crate at hand wraps this function")]
pub fn stand_back() {
    // SAFETY: both take numbers only. On Linux 0 is the calling thread.
    unsafe {
        // It never comes forward. An error reads as -1, which is less as well.
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0).max(NICE);
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    /// Reads the nice value of the calling thread.
    fn nice() -> i32 {
        let text = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = text.rsplit_once(") ").unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn one_thread_stands_back_and_the_others_do_not() {
        let before = nice();
        let there = thread::spawn(|| {
            stand_back();
            nice()
        });
        assert_eq!(there.join().unwrap(), NICE);
        assert_eq!(nice(), before);
    }

    #[test]
    #[expect(unsafe_code, reason = "no crate at hand wraps this function")]
    fn a_thread_that_stands_back_further_stays_there() {
        let there = thread::spawn(|| {
            // SAFETY: takes numbers only.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE + 5) };
            stand_back();
            nice()
        });
        assert_eq!(there.join().unwrap(), NICE + 5);
    }
}
