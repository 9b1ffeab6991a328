//! A door's configuration: one JSON object with the door's own keys and the keys of the service side by side.
//!
//! `#[serde(flatten)]` would do the same, but a struct with a flattened part cannot list the expected keys in its errors.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ServiceConfig;
use crate::ServiceError;

impl ServiceConfig {
    /// Every key of the service's part.
    ///
    /// A door that uses only some of them passes its own list to [`ServiceConfig::take_from`].
    pub const KEYS: &[&str] = &[
        "router_id",
        "routing",
        "prompt",
        "feed",
        "shadows",
        "records",
        "tracing",
        "peers",
    ];

    /// Reads a door's configuration. Each key of `service_keys` goes to the service's part, every other key to the door's own part,
    /// which refuses unknown ones.
    ///
    /// The service's part is not checked: a door may change it first.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the value received and the values expected.
    pub fn take_from<Door: DeserializeOwned>(
        json: &str,
        service_keys: &[&str],
    ) -> Result<(Self, Door), ServiceError> {
        let mut own: Map<String, Value> = serde_json::from_str(json)
            .map_err(|error| ServiceError::Config(format!("not a configuration, a JSON object: {error}")))?;
        let mut config = Self::default();
        for &key in service_keys {
            if let Some(value) = own.remove(key) {
                config
                    .set(key, value)
                    .map_err(|error| ServiceError::Config(format!("{key}: {error}")))?;
            }
        }
        let door = serde_json::from_value(Value::Object(own)).map_err(|error| {
            let keys = service_keys.join(", ");
            ServiceError::Config(format!("{error}; the keys of the service are {keys}"))
        })?;
        Ok((config, door))
    }

    /// Sets one key. A key that the service does not have changes nothing.
    fn set(&mut self, key: &str, value: Value) -> Result<(), serde_json::Error> {
        debug_assert!(Self::KEYS.contains(&key), "{key} is no key of the service");
        match key {
            "router_id" => self.router_id = serde_json::from_value(value)?,
            "routing" => self.routing = serde_json::from_value(value)?,
            "prompt" => self.prompt = serde_json::from_value(value)?,
            "feed" => self.feed = serde_json::from_value(value)?,
            "shadows" => self.shadows = serde_json::from_value(value)?,
            "records" => self.records = serde_json::from_value(value)?,
            "tracing" => self.tracing = serde_json::from_value(value)?,
            "peers" => self.peers = serde_json::from_value(value)?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Door {
        listen: String,
    }

    fn read(json: &str) -> Result<(ServiceConfig, Door), ServiceError> {
        ServiceConfig::take_from(json, &["router_id", "routing", "feed"])
    }

    #[test]
    fn keys_of_the_door_and_of_the_service_stand_side_by_side() {
        let json = r#"{"listen": "here", "router_id": "r", "routing": {"receipts": 3}}"#;
        let (service, door) = read(json).unwrap();
        assert_eq!((door.listen.as_str(), service.router_id.as_str()), ("here", "r"));
        assert_eq!(service.routing.receipts, 3);
    }

    #[test]
    fn wrong_key_is_refused_with_the_keys_that_fit() {
        for (json, parts) in [
            (r#"{"listne": 1}"#, ["`listne`", "`listen`", "routing"]),
            (r#"{"shadows": {}}"#, ["`shadows`", "`listen`", "feed"]),
            (
                r#"{"routing": {"polcy": 1}}"#,
                ["routing: ", "`polcy`", "`policy`"],
            ),
            (r#"{"feed": 3}"#, ["feed: ", "3", "FeedOptions"]),
            ("[]", ["configuration", "sequence", "map"]),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
