//! Tokeniser and template of one model, and the kinds of prompts whose token ids proved equal to Dynamo's.
//!
//! [`super::prepare`] encodes prompts here, and [`super::handover`] sets the proven kinds. A model whose files cannot be read is still
//! served: its requests are placed by load.
//!
//! Reading the files takes up to seconds and happens before the model is registered. Afterwards a
//! prompter changes only its set of proven shapes, an atomic word that every request reads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::Abstention;
use super::body::Endpoint;
use super::card::CardOptions;
use super::chat::ChatRequest;
use super::shape::Shape;
use super::shared_tokenisers::{SharedTokenisers, TokeniserFiles};
use super::special_tokens::SpecialTokens;
use super::template::Renderer;
use super::tokenise::Tokeniser;

/// Tokeniser and template of one model.
pub(crate) struct Prompter {
    /// Tokeniser, shared by models with the same files; `None` without files that work.
    tokeniser: Option<Arc<Tokeniser>>,
    /// Chat template; `None` without one that works.
    renderer: Option<Renderer>,
    /// Tokens around the text of a completions request.
    around_text: SpecialTokens,
    /// Properties of the model card that change prompts.
    card: CardOptions,
    /// Faults of the files, in words; empty for a whole model.
    problems: Vec<String>,
    /// Bits of the proven [`Shape`]s; 0 until the first comparison agreed.
    proven: AtomicU8,
    /// Prompts handed over so far, which decides the samples.
    handovers: AtomicU64,
    /// Channel to the comparison, with room for one sample.
    samples: mpsc::Sender<Sample>,
    /// Other end of the channel, until the task of the comparison takes it.
    sampled: Mutex<Option<mpsc::Receiver<Sample>>>,
    /// Signal that asks for a comparison of all samples.
    recheck: Arc<Notify>,
}

/// A request whose ids were handed over, for a comparison with Dynamo's own ids.
pub(crate) struct Sample {
    /// Where the request goes.
    pub endpoint: Endpoint,
    /// The client's body.
    pub body: Bytes,
    /// The ids that replaced Dynamo's.
    pub tokens: Vec<u32>,
}

/// Of the later handed-over prompts, one in this many is compared with Dynamo's ids.
const SAMPLE_EVERY: u64 = 256;

impl Prompter {
    /// Reads the tokeniser and the template of a model. A fault in a file becomes one of [`Prompter::problems`].
    pub fn from_files(
        files: &TokeniserFiles,
        name: &str,
        card: &CardOptions,
        all: &SharedTokenisers,
    ) -> Self {
        let mut problems = Vec::new();
        let tokeniser = guarded(|| all.load(files));
        let renderer = guarded(|| Renderer::from_folder(&files.folder, name, card));
        let around_text = guarded(|| {
            let is_wanted = card.completions_have_special_tokens;
            is_wanted
                .then(|| SpecialTokens::from_folder(&files.folder))
                .transpose()
        });
        let (samples, sampled) = mpsc::channel(1);
        Self {
            tokeniser: keep(tokeniser, &mut problems),
            renderer: keep(renderer, &mut problems),
            around_text: keep(around_text, &mut problems).unwrap_or_default(),
            card: card.clone(),
            problems,
            proven: AtomicU8::new(0),
            handovers: AtomicU64::new(0),
            samples,
            sampled: Mutex::new(Some(sampled)),
            recheck: Arc::default(),
        }
    }

    /// Receiver of the samples of handed-over prompts. Only the first call gets it.
    pub fn take_samples(&self) -> Option<mpsc::Receiver<Sample>> {
        self.sampled.lock().take()
    }

    /// Sends some of the handed-over prompts to the comparison. While a comparison runs, further samples are dropped.
    pub fn sample(&self, endpoint: Endpoint, body: &Bytes, tokens: &[u32]) {
        let number = self.handovers.fetch_add(1, Ordering::Relaxed) + 1;
        // Early prompts are compared more often: the 1st, 2nd, 4th and so on, then every 256th.
        if !number.is_power_of_two() && !number.is_multiple_of(SAMPLE_EVERY) {
            return;
        }
        if let Ok(slot) = self.samples.try_reserve() {
            slot.send(Sample {
                endpoint,
                body: body.clone(),
                tokens: tokens.to_vec(),
            });
        }
    }

    /// What is wrong with the files, in words.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Whether the model has a tokeniser that works.
    pub fn has_tokeniser(&self) -> bool {
        self.tokeniser.is_some()
    }

    /// Whether the model has a chat template that works.
    pub fn has_template(&self) -> bool {
        self.renderer.is_some()
    }

    /// Ends the handover until all samples are compared again.
    pub fn recheck(&self) {
        self.set_proven(Shape::default());
        self.recheck.notify_one();
    }

    /// Signal of [`Prompter::recheck`], for the task that compares.
    pub fn rechecks(&self) -> Arc<Notify> {
        self.recheck.clone()
    }

    /// Ids of a text of the completions endpoint.
    ///
    /// A panic of the tokeniser counts as its failure, and the request is routed without a prompt.
    ///
    /// # Errors
    /// The reason why the ids are not known.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Abstention> {
        let tokeniser = self.tokeniser.as_ref().ok_or(Abstention::NoTokeniser)?;
        let encoded = catch_unwind(AssertUnwindSafe(|| tokeniser.encode(text)));
        let ids = encoded.unwrap_or(Err(Abstention::TokeniserError))?;
        Ok(self.around_text.around(ids))
    }

    /// Ids of a conversation, and the kinds of content in it. `check` sees the bytes of the rendered text before it is tokenised.
    ///
    /// # Errors
    /// The reason why the ids are not known.
    pub fn encode_chat(
        &self,
        mut request: ChatRequest,
        check: impl FnOnce(usize) -> Result<(), Abstention>,
    ) -> Result<(Vec<u32>, Shape), Abstention> {
        let tokeniser = self.tokeniser.as_ref().ok_or(Abstention::NoTokeniser)?;
        let renderer = self.renderer.as_ref().ok_or(Abstention::NoTokeniser)?;
        if request.has_media() {
            return Err(Abstention::Multimodal);
        }
        let shape = request.shape(&self.card);
        request.resolve_thinking(&self.card)?;
        let tokens = catch_unwind(AssertUnwindSafe(|| {
            let prompt = renderer.render(&request)?;
            check(prompt.as_str().len())?;
            tokeniser.encode_prompt(&prompt)
        }));
        Ok((tokens.unwrap_or(Err(Abstention::TokeniserError))?, shape))
    }

    /// Whether ids of this shape may replace Dynamo's.
    pub fn is_proven(&self, shape: Shape) -> bool {
        Shape::from_bits(self.proven.load(Ordering::Acquire)).contains(shape)
    }

    /// Replaces the set of proven shapes. The empty set ends the handover at once.
    pub fn set_proven(&self, shapes: Shape) {
        self.proven.store(shapes.bits(), Ordering::Release);
    }
}

/// Turns a panic of another crate over a malformed file into a problem of the file: the model is then routed by load.
fn guarded<T>(load: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(load))
        .unwrap_or_else(|_| Err("the files of the model cannot be read: their reader panicked".into()))
}

/// The value that was found; a problem goes into the list instead.
fn keep<T>(found: Result<Option<T>, String>, problems: &mut Vec<String>) -> Option<T> {
    found.unwrap_or_else(|problem| {
        problems.push(problem);
        None
    })
}
