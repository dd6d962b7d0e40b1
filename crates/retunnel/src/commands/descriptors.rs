//! How many connections the system lets this process have.

/// Raises the number of file descriptors from what shells start with, often 1,024, to what the system allows. A server
/// or a busy tunnel needs one or two for each visitor. A wish: where it is refused the program works with fewer.
pub(crate) fn raise() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        /// More than anyone needs; some systems refuse "unlimited".
        const ENOUGH: u64 = 1 << 20;
        /// macOS takes no more than this, whatever its hard limit says.
        const MODEST: u64 = 10_240;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        for wanted in [maximum.unwrap_or(ENOUGH).min(ENOUGH), MODEST] {
            let is_more = current.is_some_and(|current| current < wanted);
            if !is_more || setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
                return;
            }
        }
    }
}
