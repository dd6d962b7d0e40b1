//! Polls a file for changes. Unlike file system notifications, polling works on every file system, with editors that save
//! by renaming, and with symbolic links that are switched to another file (Kubernetes' ConfigMaps).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use retunnel_config::text;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::commands::signals::Hangup;

/// Time between two polls. A changed file is read once two polls in a row find it the same: the writer is done.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Polls until a missing file is reported: some editors remove it for a moment.
const GONE_AFTER: u32 = 6;
/// Largest file that is read.
pub(crate) const MAX_BYTES: u64 = 1024 * 1024;

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileContent {
    Text(String),
    /// The reason why it cannot be read.
    Unreadable(String),
}

/// Watches a file until it is dropped.
pub(crate) struct FileWatch {
    contents: mpsc::Receiver<FileContent>,
    _task: JoinSet<()>,
}

impl FileWatch {
    /// Watches a file whose text was already read. SIGHUP always reads it again. Must be called in a runtime.
    pub(crate) fn new(path: PathBuf, text: String) -> Result<Self> {
        let (sender, contents) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(watch(path, text, Hangup::listen()?, sender));
        Ok(Self { contents, _task: task })
    }

    /// The next content. Cancel-safe.
    pub(crate) async fn next(&mut self) -> FileContent {
        match self.contents.recv().await {
            Some(content) => content,
            None => std::future::pending().await,
        }
    }
}

async fn watch(path: PathBuf, mut text: String, mut hangup: Hangup, sender: mpsc::Sender<FileContent>) {
    let mut tick = interval(POLL_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The state of the file when it was last read; `None` first, so that changes since the first read are found too.
    let mut known = None;
    let mut last = None;
    let mut absent = 0;
    loop {
        // Both arms are cancel-safe.
        let is_forced = tokio::select! {
            _ = tick.tick() => false,
            () = hangup.reload() => true,
        };
        let mark = blocking(&path, |path| Mark::of(path).ok()).await;
        let is_quiet = last == mark;
        last.clone_from(&mark);
        absent = if mark.is_some() { 0 } else { absent + 1 };
        if !is_forced && (known.as_ref() == Some(&mark) || !is_quiet || (mark.is_none() && absent < GONE_AFTER)) {
            continue;
        }
        known = Some(mark);
        let content = match blocking(&path, read).await {
            Ok(now) if now == text && !is_forced => continue,
            Ok(now) => {
                text.clone_from(&now);
                FileContent::Text(now)
            }
            Err(error) => FileContent::Unreadable(error.to_string()),
        };
        if sender.send(content).await.is_err() {
            return;
        }
    }
}

/// Runs on another thread: a file system that hangs must not stop the relays.
async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let path = path.to_owned();
    match spawn_blocking(move || work(&path)).await {
        Ok(result) => result,
        // The runtime ends.
        Err(_) => std::future::pending().await,
    }
}

/// Reads a text file up to [`MAX_BYTES`].
pub(crate) fn read(path: &Path) -> io::Result<String> {
    text::read(path, MAX_BYTES)
}

/// File metadata that changes when the file does. Links are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    size: u64,
    modified: Option<SystemTime>,
    /// Device, inode and change time: they reveal a renamed file, and writes within one tick of the clock.
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

    struct Watched {
        directory: tempfile::TempDir,
        path: PathBuf,
        watch: FileWatch,
    }

    impl Watched {
        fn start(text: &str) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("retunnel.yml");
            fs::write(&path, text).expect("written");
            let watch = FileWatch::new(path.clone(), text.into()).expect("signals");
            Self { directory, path, watch }
        }

        async fn next(&mut self) -> FileContent {
            timeout(Duration::from_secs(20), self.watch.next()).await.expect("detected in time")
        }
    }

    fn text(text: &str) -> FileContent {
        FileContent::Text(text.into())
    }

    #[tokio::test]
    async fn writes_renames_and_switched_links_are_detected() {
        let mut watched = Watched::start("a");
        fs::write(&watched.path, "b").expect("written");
        assert_eq!(watched.next().await, text("b"));
        // vim and most editors save this way.
        let other = watched.directory.path().join("new");
        fs::write(&other, "c").expect("written");
        fs::rename(&other, &watched.path).expect("renamed");
        assert_eq!(watched.next().await, text("c"));
        // Kubernetes changes a ConfigMap this way: a link to a directory is switched.
        let in_directory = |name: &str| watched.directory.path().join(name);
        for (version, content) in [("v1", "d"), ("v2", "e")] {
            fs::create_dir(in_directory(version)).expect("made");
            fs::write(in_directory(version).join("retunnel.yml"), content).expect("written");
            symlink(version, in_directory("switched")).expect("linked");
            fs::rename(in_directory("switched"), in_directory("..data")).expect("switched");
            if version == "v1" {
                fs::remove_file(&watched.path).expect("removed");
                symlink("..data/retunnel.yml", &watched.path).expect("linked");
            }
            let found = timeout(Duration::from_secs(20), watched.watch.next()).await.expect("detected in time");
            assert_eq!(found, text(content));
        }
    }

    #[tokio::test]
    async fn a_touched_file_is_no_change_and_a_missing_one_is_reported_once() {
        let mut watched = Watched::start("a");
        fs::write(&watched.path, "a").expect("written");
        fs::remove_file(&watched.path).expect("removed");
        // The touch before it was not reported.
        assert!(matches!(watched.next().await, FileContent::Unreadable(reason) if reason.contains("No such file")));
        fs::write(&watched.path, "b").expect("written");
        assert_eq!(watched.next().await, text("b"), "reported once, and found again");
        fs::write(&watched.path, vec![b'x'; MAX_BYTES as usize + 1]).expect("written");
        assert!(matches!(watched.next().await, FileContent::Unreadable(reason) if reason.contains("larger")));
    }
}
