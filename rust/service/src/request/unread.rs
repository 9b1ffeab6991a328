//! Requests whose prompt the service does not know: a door without an engine's own router places them by load alone.

use crate::prompt::{Abstention, Prompt};
use crate::request::Prepared;
use crate::service::Service;

use wardrop_core::HashScope;

/// The facts that a door knows about a request with unknown tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnreadPrompt {
    /// Estimated tokens of the prompt; 0 where nothing is known.
    pub input_tokens: u32,
    /// Whether the answer arrives token by token.
    pub is_streamed: bool,
}

impl Service {
    /// A request for a model whose blocks are unknown: only the load of the workers counts.
    ///
    /// # Errors
    /// [`Abstention::UnknownModel`] for a name that is not registered.
    pub fn prepare_unread(&self, model: &str, unread: UnreadPrompt) -> Result<Prepared, Abstention> {
        let (model, _) = self.models.find(model).ok_or(Abstention::UnknownModel)?;
        let mut prompt = Prompt::from_tokens(&[], model.spec.block_size, &HashScope::default())?;
        prompt.input_tokens = unread.input_tokens;
        prompt.is_estimated = true;
        prompt.is_streamed = unread.is_streamed;
        Ok(Prepared { model, prompt })
    }
}
