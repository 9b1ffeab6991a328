//! The thread that writes decision records.
//!
//! A thread of its own, because a disk may hang for seconds. Bounds: one batch of the inbox and 256
//! KiB of lines. After a failed write, records are dropped until the pause is over, so a full disk
//! costs no CPU time.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wardrop_core::HashKey;

use super::files::RecordFiles;
use super::inbox::Inbox;
use super::line::{NameKeys, WindowFacts, write_record, write_settings, write_window};
use super::metrics::Loss;
use crate::ServiceError;
use crate::config::RecordOptions;
use crate::metrics::THREAD_PREFIX;

/// Time between two looks into the inbox. Requests then wake no thread.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Size of a batch that is written at once, in bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Pause after the first failed write; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after a failed write.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Longest wait for the last records when the service stops. A disk that hangs must not hold up the end of the process.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// The running writer thread.
pub(super) struct Writer {
    /// Handle that wakes the thread.
    thread: Thread,
    /// Hangs up when the thread ends.
    ended: Mutex<Receiver<()>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ServiceError::Io`] when the operating system gives no thread.
    pub fn start(options: &RecordOptions, key: HashKey, inbox: Arc<Inbox>) -> Result<Self, ServiceError> {
        let files = RecordFiles::new(options);
        let (running, ended) = channel();
        let handle = std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}record"))
            .spawn(move || {
                let mut work = Work::new(files, NameKeys::new(&key), inbox);
                while work.step() {
                    std::thread::park_timeout(LOOK_EVERY);
                }
                drop((work, running));
            })
            .map_err(|source| ServiceError::Io {
                what: "starting the thread of the records".into(),
                source,
            })?;
        Ok(Self {
            thread: handle.thread().clone(),
            ended: Mutex::new(ended),
        })
    }

    /// Has the thread look into the inbox now.
    pub fn wake(&self) {
        self.thread.unpark();
    }

    /// Waits until the thread has written the last records of a closed inbox.
    pub fn stop(&self) {
        self.wake();
        if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = self.ended.lock().recv_timeout(STOP_WAIT) {
            tracing::warn!("the disk takes no records; the last ones may be lost");
        }
    }
}

/// What the thread holds between two batches.
struct Work {
    /// Files of the folder.
    files: RecordFiles,
    /// Keys of the names in the lines.
    keys: NameKeys,
    /// Source of the records.
    inbox: Arc<Inbox>,
    /// Buffer that the inbox gets in exchange for its list; empty between two steps.
    batch: Vec<super::Record>,
    /// Lines that are not written yet.
    lines: Vec<u8>,
    /// Records in `lines`.
    records: u64,
    /// Pause after the next failed write.
    pause: Duration,
    /// End of the pause after a failed write; `None` while writing works.
    resume_at: Option<Instant>,
}

impl Work {
    /// Work without records.
    fn new(files: RecordFiles, keys: NameKeys, inbox: Arc<Inbox>) -> Self {
        Self {
            files,
            keys,
            inbox,
            batch: Vec::new(),
            lines: Vec::new(),
            records: 0,
            pause: FIRST_PAUSE,
            resume_at: None,
        }
    }

    /// Writes every record that waits. Returns whether more may come.
    fn step(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let mut windows = Vec::new();
        let is_last = self.inbox.take(&mut batch, &mut windows);
        let pauses = self.resume_at.is_some_and(|at| Instant::now() < at);
        if pauses && !is_last {
            let lost = batch.len() + windows.len();
            self.inbox.metrics.lost(Loss::WriteFailed, lost as u64);
            batch.clear();
            windows.clear();
        }
        for record in batch.drain(..) {
            self.add(&record);
        }
        for window in &windows {
            self.add_window(window);
        }
        self.write_lines();
        self.batch = batch;
        !is_last
    }

    /// Adds the line of a record, and before it the settings that the file does not hold yet.
    fn add(&mut self, record: &super::Record) {
        let start = self.lines.len();
        if self.files.needs_settings(record.settings.version) {
            write_settings(&mut self.lines, &record.settings);
        }
        write_record(&mut self.lines, record, &self.keys);
        if self.files.fits(self.lines.len()) {
            self.files.holds_settings(record.settings.version);
        } else {
            // The record begins the next file, which holds no settings yet.
            self.lines.truncate(start);
            self.write_lines();
            self.files.close();
            write_settings(&mut self.lines, &record.settings);
            write_record(&mut self.lines, record, &self.keys);
            if !self.files.fits(self.lines.len()) {
                self.lines.clear();
                self.inbox.metrics.lost(Loss::TooLarge, 1);
                return;
            }
            self.files.holds_settings(record.settings.version);
        }
        self.records += 1;
        if self.lines.len() >= BATCH_BYTES {
            self.write_lines();
        }
    }

    /// Adds the line of a window.
    fn add_window(&mut self, window: &WindowFacts) {
        let start = self.lines.len();
        write_window(&mut self.lines, window);
        if !self.files.fits(self.lines.len()) {
            self.lines.truncate(start);
            self.write_lines();
            self.files.close();
            write_window(&mut self.lines, window);
            if !self.files.fits(self.lines.len()) {
                self.lines.clear();
                self.inbox.metrics.lost(Loss::TooLarge, 1);
            }
        }
    }

    /// Writes the collected lines. A failure drops them, counts their records and starts a pause.
    fn write_lines(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let metrics = &self.inbox.metrics;
        match self.files.append(&self.lines) {
            Ok(removed) => {
                metrics.written.inc_by(self.records);
                metrics.removed.inc_by(removed);
                self.pause = FIRST_PAUSE;
                self.resume_at = None;
                self.inbox.works();
            }
            Err(error) => {
                metrics.lost(Loss::WriteFailed, self.records);
                self.files.close();
                self.resume_at = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(LAST_PAUSE);
                self.inbox.fails(error);
            }
        }
        metrics
            .bytes
            .set(i64::try_from(self.files.bytes()).unwrap_or(i64::MAX));
        self.lines.clear();
        self.records = 0;
    }
}
