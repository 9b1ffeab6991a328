//! A trace of a door that has spans of its own, for example of Dynamo's frontend: the door takes the facts at the request's end.
//!
//! The service's own exporter is not involved, so this works in a build without the feature `otlp`.

use parking_lot::Mutex;

use super::facts::{CollectsFacts, TraceFacts};

/// What a door does with the facts of one request.
type Finish = Box<dyn FnOnce(TraceFacts) + Send>;

/// The trace of one request; dropping the last handle hands the facts to the door.
pub struct DoorTrace {
    facts: Mutex<TraceFacts>,
    /// `None` after the end.
    finish: Mutex<Option<Finish>>,
}

impl DoorTrace {
    /// A trace whose facts go to `finish` at the end of the request.
    pub fn new(finish: impl FnOnce(TraceFacts) + Send + 'static) -> Self {
        Self {
            facts: Mutex::default(),
            finish: Mutex::new(Some(Box::new(finish))),
        }
    }
}

impl CollectsFacts for DoorTrace {
    fn facts(&self) -> &Mutex<TraceFacts> {
        &self.facts
    }
}

impl Drop for DoorTrace {
    fn drop(&mut self) {
        if let Some(finish) = self.finish.get_mut().take() {
            finish(std::mem::take(self.facts.get_mut()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_door_takes_the_facts_once_with_the_last_handle() {
        let taken: Arc<Mutex<Vec<TraceFacts>>> = Arc::default();
        let sink = taken.clone();
        let trace = Arc::new(DoorTrace::new(move |facts| sink.lock().push(facts)));
        trace.facts().lock().prompt("m", 7);
        let other = trace.clone();
        drop(trace);
        assert!(taken.lock().is_empty(), "a handle is left");
        drop(other);
        let taken = taken.lock();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].model.as_deref(), Some("m"));
    }
}
