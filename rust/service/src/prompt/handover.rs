//! The comparison of the service's token ids with Dynamo's, by dry runs. The first difference ends the handover of ids.
//!
//! One task per model compares ids. It compares all samples before any handover, again at intervals, and after a frontend may have
//! restarted. Between these times it compares some of the prompts that are handed over. Both sides use the same crates, so a
//! difference means that the frontend works with other files or another version. After a difference, no prompt of the model is handed
//! over until all samples agree again.
//!
//! Cost: a handful of short requests per model and minute, and one dry run per 256 handed-over
//! prompts. A stream of differences cannot pile up: the channel of samples holds one.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use super::Abstention;
use super::body::Endpoint;
use super::chat::ChatRequest;
use super::prompter::{Prompter, Sample};
use super::samples::samples;
use super::shape::Shape;

/// Pause while the frontend cannot answer dry runs.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two looks at the incarnation of the frontends.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time between two comparisons of all samples.
const RECHECK_EVERY: Duration = Duration::from_secs(60);

/// Why a dry run gave no token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRunError {
    /// The engine's frontend cannot answer dry runs now: no workers, another mode, down.
    Unavailable(String),
    /// The engine's frontend refused this sample.
    Refused(String),
}

/// Source of the token ids that the engine's frontend computes. A door implements it, because only a door knows its upstreams.
pub trait TokenIdSource: Send + Sync + 'static {
    /// Token ids that the frontend computes for the JSON `body` of a request to `endpoint`. The body asks for a dry run.
    ///
    /// # Errors
    /// The frontend is unavailable, or it refuses this body.
    fn token_ids(
        &self,
        endpoint: Endpoint,
        body: String,
    ) -> impl Future<Output = Result<Vec<u32>, DryRunError>> + Send;

    /// A number that changes whenever a frontend joined, left or may have restarted.
    fn incarnation(&self) -> u64;
}

/// What the last comparison found, per shape.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct HandoverReport {
    /// Every shape with its samples.
    pub shapes: Vec<ShapeReport>,
    /// Comparisons of all samples so far.
    pub checks: u64,
    /// The first difference, which ended the handover; `None` while ids agree.
    pub difference: Option<String>,
}

/// The samples of one shape.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShapeReport {
    /// Name of the shape.
    pub shape: &'static str,
    /// Samples that Dynamo answered.
    pub samples: usize,
    /// Samples with the same ids.
    pub equal: usize,
    /// Whether ids of this shape are handed over.
    pub handed_over: bool,
    /// Why a sample has no equal ids; `None` while all have.
    pub note: Option<String>,
}

/// Receiver of the task's results, one after each comparison.
pub(crate) trait HandoverLog: Send + 'static {
    /// Takes over a report.
    fn report(&self, report: HandoverReport);
    /// Counts a difference.
    fn differed(&self);
}

/// Compares ids as long as the prompter lives, as the module's text describes.
///
/// It holds the prompter weakly, so removing or replacing the model ends the task.
pub(crate) async fn keep_checked(
    prompter: Weak<Prompter>,
    model: String,
    source: impl TokenIdSource,
    log: impl HandoverLog,
) {
    let Some(watched) = prompter.upgrade() else { return };
    let Some(sampled) = watched.take_samples() else {
        return;
    };
    let rechecks = watched.rechecks();
    drop(watched);
    let mut task = HandoverTask {
        prompter,
        model,
        source,
        log,
        sampled,
        rechecks,
        report: HandoverReport::default(),
        waits: false,
        client_difference: None,
    };
    while task.check().await.is_some() && task.watch().await.is_some() {}
}

/// State of the task of one model.
struct HandoverTask<S, L> {
    /// Prompter whose ids are compared; gone once the model is removed or its files change.
    prompter: Weak<Prompter>,
    /// Name of the model, for the samples and the log.
    model: String,
    /// Frontend that answers dry runs.
    source: S,
    /// Receiver of results.
    log: L,
    /// Handed-over prompts to compare; at most one waits.
    sampled: mpsc::Receiver<Sample>,
    /// Signal that a comparison is asked for, for example by the control plane.
    rechecks: Arc<Notify>,
    /// Result of the last comparison.
    report: HandoverReport,
    /// Whether the last attempt met a frontend that cannot answer, so that the log reports the wait once.
    waits: bool,
    /// Difference over a prompt of a client. It stays until a frontend restarts, because the samples do not cover this prompt.
    client_difference: Option<String>,
}

impl<S: TokenIdSource, L: HandoverLog> HandoverTask<S, L> {
    /// Compares all samples, with as many attempts as the frontend needs. `None` when the model is gone.
    async fn check(&mut self) -> Option<()> {
        loop {
            let incarnation = self.source.incarnation();
            let prompter = self.prompter.upgrade()?;
            match compare(&prompter, &self.model, &self.source).await {
                Ok(shapes) if self.source.incarnation() == incarnation => {
                    self.conclude(&prompter, shapes);
                    self.waits = false;
                    return Some(());
                }
                // A frontend joined or left meanwhile, so two frontends with different files may have answered.
                Ok(_) => {}
                Err(reason) => {
                    if !self.waits {
                        tracing::info!(model = %self.model, %reason, "the comparison of token ids waits for the frontend");
                    }
                    self.waits = true;
                }
            }
            drop(prompter);
            sleep(PAUSE).await;
        }
    }

    /// Turns the counts of one comparison into the set of proven shapes, and reports it.
    ///
    /// One shape with a difference ends the handover of every shape: the frontend then works with
    /// other files or another version.
    fn conclude(&mut self, prompter: &Prompter, mut shapes: Vec<ShapeReport>) {
        let differs = shapes.iter().find(|shape| shape.equal < shape.samples);
        let difference = differs
            .map(|shape| {
                let note = shape.note.as_deref().unwrap_or("no ids here");
                format!("sample of shape {}: {note}", shape.shape)
            })
            .or_else(|| self.client_difference.clone());
        let mut proven = Shape::default();
        for (entry, (shape, _)) in shapes.iter_mut().zip(Shape::CHECKED) {
            entry.handed_over = difference.is_none() && entry.samples > 0;
            if entry.handed_over {
                proven |= shape;
            }
        }
        prompter.set_proven(proven);
        let is_first = self.report.checks == 0;
        if is_first || self.report.difference != difference {
            self.announce(difference.as_deref());
        }
        if difference.is_some() && self.report.difference.is_none() {
            self.log.differed();
        }
        self.report = HandoverReport {
            shapes,
            checks: self.report.checks + 1,
            difference,
        };
        self.log.report(self.report.clone());
    }

    /// Logs the start or the end of the handover. The text of a difference holds no id.
    fn announce(&self, difference: Option<&str>) {
        match difference {
            None => tracing::info!(model = %self.model, "token ids equal Dynamo's: handed over"),
            Some(difference) => tracing::warn!(
                model = %self.model, difference, "token ids differ from Dynamo's: used as a hint only"
            ),
        }
    }

    /// Compares handed-over prompts until all samples are due again. `None` when the model is gone.
    async fn watch(&mut self) -> Option<()> {
        let due = Instant::now() + RECHECK_EVERY;
        let incarnation = self.source.incarnation();
        while Instant::now() < due {
            let is_asked = tokio::select! {
                sample = self.sampled.recv() => {
                    self.compare_sample(sample?).await;
                    false
                }
                () = self.rechecks.notified() => true,
                () = sleep(LOOK_EVERY) => false,
            };
            if is_asked {
                self.client_difference = None;
                return Some(());
            }
            if self.source.incarnation() != incarnation {
                // Another frontend may have other files, so nothing is handed over until it agreed.
                self.client_difference = None;
                self.prompter.upgrade()?.set_proven(Shape::default());
                return Some(());
            }
        }
        Some(())
    }

    /// Compares one prompt of a client. An unanswered or refused dry run proves nothing and changes
    /// nothing.
    async fn compare_sample(&mut self, sample: Sample) {
        let Some(body) = dry_run_body(&sample.body) else {
            return;
        };
        let Ok(theirs) = self.source.token_ids(sample.endpoint, body).await else {
            return;
        };
        let Some(difference) = difference(&sample.tokens, &theirs) else {
            return;
        };
        if let Some(prompter) = self.prompter.upgrade() {
            prompter.set_proven(Shape::default());
        }
        let difference = format!("a prompt of a client: {difference}");
        self.announce(Some(&difference));
        self.log.differed();
        self.client_difference = Some(difference.clone());
        self.report.difference = Some(difference);
        for shape in &mut self.report.shapes {
            shape.handed_over = false;
        }
        self.log.report(self.report.clone());
    }
}

/// Compares the service's ids with Dynamo's on all samples.
///
/// A sample that Dynamo refuses is left out of the counts; its note shows the refusal.
///
/// # Errors
/// A text when Dynamo's frontend answers no dry runs: no workers, not in kv mode, down.
async fn compare(
    prompter: &Prompter,
    model: &str,
    source: &impl TokenIdSource,
) -> Result<Vec<ShapeReport>, String> {
    let mut shapes = Vec::with_capacity(Shape::CHECKED.len());
    for (shape, name) in Shape::CHECKED {
        let mut entry = ShapeReport {
            shape: name,
            samples: 0,
            equal: 0,
            handed_over: false,
            note: None,
        };
        for sample in samples(shape, model) {
            let endpoint = if shape == Shape::TEXT {
                Endpoint::Completions
            } else {
                Endpoint::Chat
            };
            let text = sample.to_string();
            let body = dry_run_body(text.as_bytes()).ok_or("a sample is no JSON object")?;
            let theirs = match source.token_ids(endpoint, body).await {
                Ok(ids) => ids,
                Err(DryRunError::Refused(note)) => {
                    entry.note = Some(note);
                    continue;
                }
                Err(DryRunError::Unavailable(reason)) => return Err(reason),
            };
            entry.samples += 1;
            match our_ids(prompter, endpoint, &sample, text.as_bytes()) {
                Ok(ids) => match difference(&ids, &theirs) {
                    None => entry.equal += 1,
                    Some(difference) => entry.note = Some(difference),
                },
                Err(reason) => entry.note = Some(format!("no ids here: {}", reason.name())),
            }
        }
        shapes.push(entry);
    }
    Ok(shapes)
}

/// Where two lists of ids differ, in words without ids; `None` for equal lists.
fn difference(ours: &[u32], theirs: &[u32]) -> Option<String> {
    if ours == theirs {
        return None;
    }
    let shared = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    Some(format!(
        "{} ids here, {} there, the first {shared} are equal",
        ours.len(),
        theirs.len()
    ))
}

/// Ids of a sample, computed as for a client's request.
fn our_ids(
    prompter: &Prompter,
    endpoint: Endpoint,
    sample: &Value,
    body: &[u8],
) -> Result<Vec<u32>, Abstention> {
    if endpoint == Endpoint::Completions {
        return prompter.encode(sample["prompt"].as_str().unwrap_or_default());
    }
    let (ids, _) = prompter.encode_chat(ChatRequest::from_chat(body)?, |_| Ok(()))?;
    Ok(ids)
}

/// The same request as a dry run that is answered in one piece. Every other field keeps the client's bytes.
fn dry_run_body(body: &[u8]) -> Option<String> {
    const ANNOTATIONS: &str = r#"["query_instance_id:"]"#;
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).ok()?;
    let mut nvext: BTreeMap<String, Box<RawValue>> = match fields.get("nvext") {
        Some(raw) if raw.get() != "null" => serde_json::from_str(raw.get()).ok()?,
        _ => BTreeMap::new(),
    };
    nvext.insert(
        "annotations".into(),
        RawValue::from_string(ANNOTATIONS.into()).ok()?,
    );
    fields.insert("nvext".into(), to_raw_value(&nvext).ok()?);
    fields.insert("stream".into(), to_raw_value(&false).ok()?);
    fields.remove("stream_options");
    serde_json::to_string(&fields).ok()
}
