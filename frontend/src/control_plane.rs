//! The control plane beside the frontend: a Python process that serves admin API and live page, and runs the controller.
//!
//! ```text
//! routing service ◀─ calls over a pair of sockets, one line of JSON each ─ control plane (Python) ◀─ HTTP on the loopback
//! ```
//!
//! The frontend starts the process where a setting needs it, and starts it again after a failure. No request waits for it. The process ends
//! when its socket closes, thus also with a frontend that is killed. One thread answers the calls, so one call runs at a time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wardrop_service::{ModelReport, Service};

/// Longest line of a call, in bytes. The longest call restores learned curves.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// Pause before a process that ended starts again. It doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Run time after which a process that ends starts again after the first pause.
const STABLE: Duration = Duration::from_secs(60);
/// Time that the process has to end after its socket closed.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Time between two looks at a process that has to end.
const END_POLL: Duration = Duration::from_millis(20);

/// Variable that tells the process whether another one ran before it: the frontend then has learned curves.
const AGAIN: &str = "WARDROP_CONTROL_PLANE_AGAIN";

/// Characters of a request id of Dynamo, which is a UUID.
const UUID_CHARACTERS: usize = 36;

/// How to start the control plane.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlPlaneSettings {
    /// Program and arguments; at least the program.
    pub command: Vec<String>,
}

/// The running control plane. Dropping it ends its process.
pub struct ControlPlane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    service: Arc<Service>,
    command: Vec<String>,
    /// Address of the public port, for the status.
    address: String,
    is_stopping: AtomicBool,
    /// Whether a process was started before.
    has_run: AtomicBool,
    /// Socket of the running process.
    socket: Mutex<Option<UnixStream>>,
}

/// One call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    call: String,
    #[serde(default)]
    arguments: Vec<String>,
}

/// The answer to one call.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Value(serde_json::Value),
    Error(String),
}

/// The status of the frontend, in the form of the gateway's.
#[derive(Serialize)]
struct Status<'a> {
    address: &'a str,
    ready: bool,
    models: Vec<ModelReport>,
    peer_address: Option<String>,
}

impl ControlPlane {
    /// Starts the process, and a thread that answers its calls.
    ///
    /// # Errors
    /// The command is empty, or the operating system gives no thread.
    pub fn start(
        settings: &ControlPlaneSettings,
        service: Arc<Service>,
        address: String,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !settings.command.is_empty(),
            "control_plane.command: got no program, expected one"
        );
        let shared = Arc::new(Shared {
            service,
            command: settings.command.clone(),
            address,
            is_stopping: AtomicBool::new(false),
            has_run: AtomicBool::new(false),
            socket: Mutex::new(None),
        });
        let thread = std::thread::Builder::new().name("control-plane".into());
        let thread = thread.spawn({
            let shared = shared.clone();
            move || shared.keep_running()
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        if let Some(socket) = &*self.shared.socket.lock() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    fn keep_running(&self) {
        let mut pause = FIRST_PAUSE;
        while !self.is_stopping() {
            let started = Instant::now();
            let outcome = self.run_once();
            if self.is_stopping() {
                return;
            }
            if started.elapsed() >= STABLE {
                pause = FIRST_PAUSE;
            }
            tracing::warn!(
                outcome,
                pause_s = pause.as_secs(),
                "the control plane ended; requests are routed as before, and it starts again"
            );
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Runs the process until it ends or its socket closes. Returns how it ended, in words.
    fn run_once(&self) -> String {
        let (socket, mut child) = match self.spawn() {
            Ok(started) => started,
            Err(error) => return format!("it cannot be started: {error}"),
        };
        let answered = self.answer_until_closed(socket);
        let ended = end(&mut child);
        match answered {
            Ok(()) => ended,
            Err(error) => format!("{ended}: {error}"),
        }
    }

    /// Answers the calls of a process until either side closes the socket. This side is closed on return.
    fn answer_until_closed(&self, socket: UnixStream) -> std::io::Result<()> {
        *self.socket.lock() = Some(socket.try_clone()?);
        // A stop between the start and the line above found no socket to close.
        let answered = if self.is_stopping() {
            Ok(())
        } else {
            self.answer_calls(socket)
        };
        self.socket.lock().take();
        answered
    }

    fn spawn(&self) -> std::io::Result<(UnixStream, Child)> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .env(
                AGAIN,
                if self.has_run.swap(true, Ordering::AcqRel) {
                    "1"
                } else {
                    "0"
                },
            )
            .spawn()?;
        Ok((ours, child))
    }

    /// Answers calls until the other side closes its socket.
    fn answer_calls(&self, socket: UnixStream) -> std::io::Result<()> {
        let mut answers = socket.try_clone()?;
        let mut calls = BufReader::new(socket);
        loop {
            let mut line = Vec::new();
            let read = calls.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            // The rest of a longer line would count as a second call.
            if line.last() != Some(&b'\n') {
                let got = line.len();
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!(
                        "got {got} bytes without the end of a line, expected at most {MAX_LINE_BYTES} bytes"
                    ),
                ));
            }
            let mut reply = serde_json::to_vec(&self.answer(&line))?;
            reply.push(b'\n');
            answers.write_all(&reply)?;
        }
    }

    fn answer(&self, line: &[u8]) -> Reply {
        let call: Call = match serde_json::from_slice(line) {
            Ok(call) => call,
            Err(error) => {
                return Reply::Error(format!(
                    "got a line of {} bytes that is no call: {error}; expected {{\"call\": NAME, \"arguments\": [TEXT, …]}}",
                    line.len()
                ));
            }
        };
        let arguments: Vec<&str> = call.arguments.iter().map(String::as_str).collect();
        let service = &self.service;
        let nothing = |outcome: Result<(), wardrop_service::ServiceError>| outcome.map(|()| json!(null));
        let outcome = match (call.call.as_str(), arguments.as_slice()) {
            ("status", []) => Ok(json!(self.status())),
            ("metrics", []) => Ok(json!(service.render_metrics())),
            ("observation", []) => Ok(json!(service.observation())),
            ("sample", []) => Ok(json!(service.sample())),
            ("shadows", []) => Ok(json!(service.shadows())),
            ("curves", []) => Ok(json!(service.curves())),
            ("restore_curves", [model, role, record]) => service
                .restore_curves(model, role, record)
                .map(|workers| json!(workers)),
            ("routing", []) => Ok(json!(service.routing())),
            ("set_routing", [change]) => service.set_routing(change).map(|routing| json!(routing)),
            ("set_figures", [figures]) => nothing(service.set_figures(figures)),
            ("set_parts", [parts]) => nothing(service.set_parts(parts)),
            ("receipt", [id]) => Ok(json!(
                service
                    .receipt(id)
                    .or_else(|| service.receipt(request_id_in(id)?))
            )),
            (name, arguments) => {
                return Reply::Error(format!(
                    "got the call {name:?} with {} arguments, which the frontend does not have",
                    arguments.len()
                ));
            }
        };
        match outcome {
            Ok(value) => Reply::Value(value),
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    fn status(&self) -> String {
        let models = self.service.model_reports();
        let status = Status {
            address: &self.address,
            ready: models.iter().any(ModelReport::is_routable),
            models,
            peer_address: self.service.peer_address().map(|address| address.to_string()),
        };
        json!(status).to_string()
    }
}

/// The request id in the id of an answer, for example in `chatcmpl-` and a UUID. `None` where there is none.
fn request_id_in(answer_id: &str) -> Option<&str> {
    let start = answer_id.len().checked_sub(UUID_CHARACTERS)?;
    answer_id.get(start..)
}

/// Waits for the end of a process whose socket is closed, and kills it when it does not end in time.
fn end(child: &mut Child) -> String {
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return format!("it ended with {status}"),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(END_POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return "it did not end in time and was killed".to_owned();
            }
            Err(error) => return format!("its end is not known: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use wardrop_service::config::ServiceConfig;

    use super::*;

    fn shared(command: &[&str]) -> Arc<Shared> {
        Arc::new(Shared {
            service: Service::new(ServiceConfig::default()).unwrap(),
            command: command.iter().map(|&part| part.to_owned()).collect(),
            address: "127.0.0.1:8000".into(),
            is_stopping: AtomicBool::new(false),
            has_run: AtomicBool::new(false),
            socket: Mutex::new(None),
        })
    }

    fn answer(line: &str) -> String {
        serde_json::to_string(&shared(&["x"]).answer(line.as_bytes())).unwrap()
    }

    #[test]
    fn a_call_is_answered_and_a_wrong_one_is_refused_with_what_was_received() {
        assert!(answer(r#"{"call": "status"}"#).contains("127.0.0.1:8000"));
        assert!(answer(r#"{"call": "routing"}"#).starts_with(r#"{"value":"{"#));
        assert_eq!(
            answer(r#"{"call": "receipt", "arguments": ["x"]}"#),
            r#"{"value":null}"#
        );
        assert!(answer(r#"{"call": "status", "arguments": ["x"]}"#).contains("with 1 arguments"));
        assert!(answer(r#"{"call": "stop"}"#).contains(r#"got the call \"stop\""#));
        assert!(answer("status").contains("a line of 6 bytes that is no call"));
        assert!(answer(r#"{"call": "set_routing", "arguments": ["[]"]}"#).starts_with(r#"{"error":"#));
    }

    #[test]
    fn request_id_is_found_in_the_id_of_an_answer() {
        let id = "0af76519-16cd-43dd-8448-eb211c80319c";
        assert_eq!(request_id_in(&format!("chatcmpl-{id}")), Some(id));
        assert_eq!(request_id_in(id), Some(id));
        assert_eq!(request_id_in("short"), None);
        assert_eq!(request_id_in(&"ä".repeat(19)), Some("ä".repeat(18).as_str()));
        assert_eq!(
            request_id_in(&format!("{}x", "ä".repeat(18))),
            None,
            "within a character"
        );
    }

    #[test]
    fn a_process_that_ends_is_reported_and_calls_over_its_socket_are_answered() {
        let script =
            r#"printf '{"call":"status"}\n' >&0; IFS= read -r answer; case $answer in *8000*) exit 7;; esac"#;
        assert!(
            shared(&["sh", "-c", script])
                .run_once()
                .contains("exit status: 7")
        );
        assert!(
            shared(&["/no/such/program"])
                .run_once()
                .starts_with("it cannot be started")
        );
    }
}
