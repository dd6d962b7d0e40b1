//! Which process uses a data directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
};

use super::{StoreError, private_directory};

/// File that the using process holds a lock on. It contains the process's number.
const FILE: &str = "server.lock";

/// A data directory in use by this process, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct InUse {
    _file: File,
}

impl InUse {
    /// Takes a data directory, which is created if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it, [`StoreError::Directory`].
    pub(crate) fn take(data_dir: &Path) -> Result<Self, StoreError> {
        private_directory(data_dir)?;
        let path = data_dir.join(FILE);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                return Err(StoreError::InUse(holder.trim().to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}
