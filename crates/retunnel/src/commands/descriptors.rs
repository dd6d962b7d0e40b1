//! The limit on open file descriptors.

/// Raises the limit on file descriptors from the default of most shells, often 1,024, to what the system allows. A server
/// or a busy tunnel needs one or two for each visitor. Best effort: if it fails, the program works with fewer.
pub(crate) fn raise_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        /// More than anyone needs; some systems reject "unlimited".
        const ENOUGH: u64 = 1 << 20;
        /// macOS accepts no more than this, whatever its hard limit is.
        const MACOS_MAXIMUM: u64 = 10_240;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        for wanted in [maximum.unwrap_or(ENOUGH).min(ENOUGH), MACOS_MAXIMUM] {
            let is_more = current.is_some_and(|current| current < wanted);
            if !is_more || setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
                return;
            }
        }
    }
}
