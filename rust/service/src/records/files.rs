//! The files of decision records in one folder: one open file, older files, and the limits on both.
//!
//! A name is `requests-TIME-NUMBER.jsonl` with the time of the file's beginning in UTC, so names sort by age. A lock on `DIR/.lock` keeps a
//! second router from the folder, because each router removes the oldest files. After a failed write the file is cut back to its last
//! whole line.
//!
//! Only the writer thread calls this module. The sum of all files stays at or below
//! `records.all_bytes`, counted with files of earlier runs.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::Utc;

use crate::config::RecordOptions;

/// Start of the name of every file of records. Other files of the folder are left alone.
const PREFIX: &str = "requests-";
/// End of the name of every file of records: JSON lines.
const SUFFIX: &str = ".jsonl";
/// Rights of a new folder: the router's user alone.
const DIR_MODE: u32 = 0o700;
/// Rights of a new file.
const FILE_MODE: u32 = 0o600;

/// The files of one folder.
pub(super) struct RecordFiles {
    /// Folder of the files.
    dir: PathBuf,
    /// Limit of one file, in bytes.
    file_bytes: u64,
    /// Limit of all files together, in bytes; at least twice `file_bytes`.
    all_bytes: u64,
    /// Held while the folder is in use; `None` before the first write.
    lock: Option<File>,
    /// File that takes lines now; `None` before the first write and between two files.
    open: Option<OpenFile>,
    /// Finished files with their sizes, oldest first.
    older: VecDeque<(PathBuf, u64)>,
    /// Sum of the sizes in `older`.
    older_bytes: u64,
    /// Number in the name of the next file.
    number: u64,
    /// Versions of the settings in the open file, or in the lines for it.
    settings: BTreeSet<u64>,
}

/// The file that takes lines now.
struct OpenFile {
    /// Handle, positioned at the end of the last whole line.
    file: File,
    /// Name of the file, for errors and for its removal later.
    path: PathBuf,
    /// Bytes of the whole lines in the file.
    bytes: u64,
}

impl RecordFiles {
    /// Takes note of the folder and touches nothing.
    pub fn new(options: &RecordOptions) -> Self {
        Self {
            dir: options.dir.clone(),
            file_bytes: options.file_bytes,
            all_bytes: options.all_bytes,
            lock: None,
            open: None,
            older: VecDeque::new(),
            older_bytes: 0,
            number: 1,
            settings: BTreeSet::new(),
        }
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.older_bytes + self.open.as_ref().map_or(0, |open| open.bytes)
    }

    /// Whether lines of this size fit into the open file, or into a new one.
    pub fn fits(&self, lines: usize) -> bool {
        self.open.as_ref().map_or(0, |open| open.bytes) + lines as u64 <= self.file_bytes
    }

    /// Whether neither the open file nor the lines for it hold these settings.
    pub fn needs_settings(&self, version: u64) -> bool {
        !self.settings.contains(&version)
    }

    /// Notes that the lines for the open file hold these settings.
    pub fn holds_settings(&mut self, version: u64) {
        self.settings.insert(version);
    }

    /// Ends the open file; the next write begins a new one.
    pub fn close(&mut self) {
        self.settings.clear();
        if let Some(open) = self.open.take() {
            self.older_bytes += open.bytes;
            self.older.push_back((open.path, open.bytes));
        }
    }

    /// Appends whole lines. Returns the number of old files that were removed to make room.
    ///
    /// # Errors
    /// What failed, with the path. Nothing of the lines is in the file then, except where the file could not be cut back.
    pub fn append(&mut self, lines: &[u8]) -> Result<u64, String> {
        // A file that was removed has no name any more, so records written to it could not be read.
        let gone = self
            .open
            .as_ref()
            .is_some_and(|open| open.file.metadata().is_ok_and(|of| of.nlink() == 0));
        if gone {
            let path = self.open.take().map(|open| open.path).unwrap_or_default();
            return Err(format!("{} was removed while it was written", path.display()));
        }
        let mut removed = 0;
        if self.open.is_none() {
            removed = self.begin()?;
        }
        let open = self.open.as_mut().expect("a file must have begun");
        if let Err(error) = open.file.write_all(lines) {
            // A reader steps over a last line that is not whole, so a failure here does no further harm.
            let _ = open.file.set_len(open.bytes);
            return Err(format!("cannot write {}: {error}", open.path.display()));
        }
        open.bytes += lines.len() as u64;
        Ok(removed)
    }

    /// Removes the oldest files until a whole new file has room, and begins the file.
    ///
    /// Returns the number of files that were removed.
    ///
    /// # Errors
    /// Another router holds the folder, or the folder or a file cannot be made, read or removed.
    fn begin(&mut self) -> Result<u64, String> {
        if self.lock.is_none() {
            self.lock = Some(lock(&self.dir)?);
            self.find_older()
                .map_err(|error| format!("cannot read {}: {error}", self.dir.display()))?;
        }
        let mut removed = 0;
        while self.older_bytes + self.file_bytes > self.all_bytes {
            let Some((path, bytes)) = self.older.pop_front() else {
                break;
            };
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let text = format!("cannot remove {}: {error}", path.display());
                    self.older.push_front((path, bytes));
                    return Err(text);
                }
            }
            self.older_bytes -= bytes;
        }
        // Two files of one second differ by their numbers. A name that exists, from an earlier run,
        // is passed over.
        loop {
            let time = Utc::now().format("%Y%m%dT%H%M%SZ");
            let path = self
                .dir
                .join(format!("{PREFIX}{time}-{:06}{SUFFIX}", self.number));
            self.number += 1;
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&path);
            match made {
                Ok(file) => {
                    self.open = Some(OpenFile { file, path, bytes: 0 });
                    return Ok(removed);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(format!("cannot make {}: {error}", path.display())),
            }
        }
    }

    /// Takes over the files of earlier runs.
    fn find_older(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_ours = name
                .to_str()
                .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
            if is_ours {
                found.push((entry.path(), entry.metadata()?.len()));
            }
        }
        found.sort();
        self.older_bytes = found.iter().map(|(_, bytes)| bytes).sum();
        self.older = found.into();
        Ok(())
    }
}

/// Makes the folder where it is missing, and locks it.
///
/// The kernel releases the lock when the process ends, so a crash leaves no stale lock.
///
/// # Errors
/// Another router holds the lock, or the folder cannot be made.
fn lock(dir: &Path) -> Result<File, String> {
    let made = DirBuilder::new().mode(DIR_MODE).create(dir);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(format!("cannot make the folder {}: {error}", dir.display()));
    }
    let path = dir.join(".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!(
            "another router writes records into {}; give each router a folder of its own",
            dir.display()
        )),
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test alone, which is removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("wardrop-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }

        fn files(&self) -> RecordFiles {
            RecordFiles::new(&RecordOptions {
                dir: self.0.clone(),
                file_bytes: 4096,
                all_bytes: 3 * 4096,
                key_file: None,
            })
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with(PREFIX))
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn all_files_together_keep_their_limit_also_over_a_restart() {
        let folder = Folder::new("limit");
        let mut removed = 0;
        for _ in 0..2 {
            let mut files = folder.files();
            for _ in 0..4 {
                removed += files.append(&[b'x'; 4000]).unwrap();
                assert!(!files.fits(97) && files.fits(96));
                files.close();
                assert!(files.bytes() <= 3 * 4096);
            }
        }
        assert_eq!(removed, 8 - 3);
        assert_eq!(folder.names().len(), 3);
        let sizes = folder.names().into_iter().map(|name| folder.0.join(name));
        assert!(sizes.map(|path| path.metadata().unwrap().len()).sum::<u64>() <= 3 * 4096);
    }

    #[test]
    fn other_files_of_the_folder_stay() {
        let folder = Folder::new("others");
        std::fs::create_dir(&folder.0).unwrap();
        std::fs::write(folder.0.join("notes.jsonl"), vec![b'n'; 20_000]).unwrap();
        let mut files = folder.files();
        for _ in 0..5 {
            files.append(&[b'x'; 4000]).unwrap();
            files.close();
        }
        assert!(folder.0.join("notes.jsonl").exists());
    }

    #[test]
    fn second_router_is_kept_from_the_folder_until_the_first_ends() {
        let folder = Folder::new("lock");
        let mut first = folder.files();
        first.append(b"{}\n").unwrap();
        let mut second = folder.files();
        let error = second.append(b"{}\n").unwrap_err();
        assert!(error.contains("give each router a folder of its own"), "{error}");
        drop(first);
        second.append(b"{}\n").unwrap();
    }

    #[test]
    fn file_that_was_removed_is_noticed_and_the_next_one_is_written() {
        let folder = Folder::new("gone");
        let mut files = folder.files();
        files.append(b"{}\n").unwrap();
        std::fs::remove_file(folder.0.join(&folder.names()[0])).unwrap();
        let error = files.append(b"{}\n").unwrap_err();
        assert!(error.contains("was removed while it was written"), "{error}");
        files.close();
        files.append(b"{}\n").unwrap();
        assert_eq!(folder.names().len(), 1);
    }

    #[test]
    fn files_are_for_the_routers_user_alone() {
        let folder = Folder::new("rights");
        folder.files().append(b"{}\n").unwrap();
        assert_eq!(folder.0.metadata().unwrap().mode() & 0o777, DIR_MODE);
        let file = folder.0.join(&folder.names()[0]);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, FILE_MODE);
    }
}
