//! Who runs first where there are fewer processors than threads?

/// How far a thread that has time stands back: it gets about a tenth of what another one gets.
const NICE: libc::c_int = 10;

/// Lets other threads run before this one, from now on. Where the system refuses, it goes on as before.
#[expect(unsafe_code, reason = "no crate at hand wraps this function")]
pub fn stand_back() {
    // SAFETY: takes numbers only. On Linux 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
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
}
