//! A file that is looked at again and again. Unlike notifications of the system this works on every file system, with
//! editors that save by renaming, and with symbolic links that are turned to another file (Kubernetes' ConfigMaps).

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::commands::signals::Hangup;

/// Time between two looks. A file that changed is read when two looks in a row find it the same: it is written no more.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks until a missing file is told of: some editors take it away for a moment.
const GONE_AFTER: u32 = 6;
/// Largest file that is read.
pub(crate) const MAX_BYTES: u64 = 1024 * 1024;

/// What was found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Text(String),
    /// It cannot be read, with the reason.
    Unreadable(String),
}

/// Follows a file until it is dropped.
pub(crate) struct FileWatch {
    seen: mpsc::Receiver<Seen>,
    _task: JoinSet<()>,
}

impl FileWatch {
    /// Follows a file whose text was read already. On SIGHUP it is read again in any case. Must be called in a runtime.
    pub(crate) fn new(path: PathBuf, text: String) -> Result<Self> {
        let (sender, seen) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(follow(path, text, Hangup::take()?, sender));
        Ok(Self { seen, _task: task })
    }

    /// The next thing that was found. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Seen {
        match self.seen.recv().await {
            Some(seen) => seen,
            None => std::future::pending().await,
        }
    }
}

async fn follow(path: PathBuf, mut text: String, mut hangup: Hangup, sender: mpsc::Sender<Seen>) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // As it was when it was read; nothing yet, so that what changed since the first reading is found too.
    let mut known = None;
    let mut last = None;
    let mut absent = 0;
    loop {
        // Both arms are cancel-safe.
        let is_asked = tokio::select! {
            _ = tick.tick() => false,
            () = hangup.reload() => true,
        };
        let mark = blocking(&path, |path| Mark::of(path).ok()).await;
        let is_quiet = last == mark;
        last.clone_from(&mark);
        absent = if mark.is_some() { 0 } else { absent + 1 };
        if !is_asked && (known.as_ref() == Some(&mark) || !is_quiet || (mark.is_none() && absent < GONE_AFTER)) {
            continue;
        }
        known = Some(mark);
        let seen = match blocking(&path, read).await {
            Ok(now) if now == text && !is_asked => continue,
            Ok(now) => {
                text.clone_from(&now);
                Seen::Text(now)
            }
            Err(error) => Seen::Unreadable(error.to_string()),
        };
        if sender.send(seen).await.is_err() {
            return;
        }
    }
}

/// A file system that hangs must not stop what is relayed meanwhile.
async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let path = path.to_owned();
    match spawn_blocking(move || work(&path)).await {
        Ok(result) => result,
        // The runtime ends.
        Err(_) => std::future::pending().await,
    }
}

/// Reads a file that is not too large.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// What changes when a file does. Links are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    size: u64,
    modified: Option<SystemTime>,
    /// Device, number and time of change: they tell a renamed file, and writes within one tick of the clock.
    #[cfg(unix)]
    node: (u64, u64, i64, i64),
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            size: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            node: {
                use std::os::unix::fs::MetadataExt;
                (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
            },
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    struct Followed {
        directory: tempfile::TempDir,
        path: PathBuf,
        watch: FileWatch,
    }

    impl Followed {
        fn begin(text: &str) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("retunnel.yml");
            fs::write(&path, text).expect("written");
            let watch = FileWatch::new(path.clone(), text.into()).expect("signals");
            Self { directory, path, watch }
        }

        async fn next(&mut self) -> Seen {
            timeout(Duration::from_secs(20), self.watch.next()).await.expect("seen in time")
        }
    }

    fn text(text: &str) -> Seen {
        Seen::Text(text.into())
    }

    #[tokio::test]
    async fn writes_renames_and_turned_links_are_seen() {
        let mut followed = Followed::begin("a");
        fs::write(&followed.path, "b").expect("written");
        assert_eq!(followed.next().await, text("b"));
        // As vim and most editors save.
        let other = followed.directory.path().join("new");
        fs::write(&other, "c").expect("written");
        fs::rename(&other, &followed.path).expect("renamed");
        assert_eq!(followed.next().await, text("c"));
        // As Kubernetes changes a ConfigMap: a link to a directory is turned.
        let in_directory = |name: &str| followed.directory.path().join(name);
        for (version, content) in [("v1", "d"), ("v2", "e")] {
            fs::create_dir(in_directory(version)).expect("made");
            fs::write(in_directory(version).join("retunnel.yml"), content).expect("written");
            symlink(version, in_directory("turned")).expect("linked");
            fs::rename(in_directory("turned"), in_directory("..data")).expect("turned");
            if version == "v1" {
                fs::remove_file(&followed.path).expect("removed");
                symlink("..data/retunnel.yml", &followed.path).expect("linked");
            }
            let seen = timeout(Duration::from_secs(20), followed.watch.next()).await.expect("seen in time");
            assert_eq!(seen, text(content));
        }
    }

    #[tokio::test]
    async fn a_touched_file_is_no_change_and_a_missing_one_is_told_of_once() {
        let mut followed = Followed::begin("a");
        fs::write(&followed.path, "a").expect("written");
        fs::remove_file(&followed.path).expect("removed");
        // The touch before it was not told.
        assert!(matches!(followed.next().await, Seen::Unreadable(reason) if reason.contains("No such file")));
        fs::write(&followed.path, "b").expect("written");
        assert_eq!(followed.next().await, text("b"), "told once, and found again");
        fs::write(&followed.path, vec![b'x'; MAX_BYTES as usize + 1]).expect("written");
        assert!(matches!(followed.next().await, Seen::Unreadable(reason) if reason.contains("larger")));
    }
}
