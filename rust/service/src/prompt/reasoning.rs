//! A client's wishes about thinking, as arguments of the chat template.
//!
//! Clients write the wish as `thinking`, as `reasoning_effort`, or as one of three template arguments. Dynamo resolves the
//! wishes into all three arguments before it renders, and so does this module. Source: `chat_completions.rs` and
//! `preprocessor.rs` of the crate `dynamo-llm` 1.6.1.
//!
//! Cost: a few lookups in the template's arguments. The order of the steps below is Dynamo's, and
//! it matters: each step reads what the one before it wrote.

use std::collections::HashMap;

use serde_json::Value;

use super::Abstention;

/// Variables of a chat template, by name.
type TemplateArguments = HashMap<String, Value>;

/// Boolean switch of some templates.
const THINKING: &str = "thinking";
/// Boolean switch of other templates, for example of Qwen's.
const ENABLE_THINKING: &str = "enable_thinking";
/// Mode in words: `enabled`, `disabled` or `adaptive`.
const THINKING_MODE: &str = "thinking_mode";
/// Effort in words; `none` turns thinking off.
const REASONING_EFFORT: &str = "reasoning_effort";
/// Mode that leaves the decision to the model.
const ADAPTIVE: &str = "adaptive";

/// What a request says about thinking.
pub(crate) struct ThinkingWishes<'a> {
    /// The field `thinking`.
    pub thinking: Option<&'a Value>,
    /// The field `reasoning_effort`.
    pub effort: Option<Value>,
    /// Mode of the model card for a request without a wish.
    pub default_mode: Option<&'a str>,
}

/// Writes the resolved wishes into the arguments of the template.
///
/// # Errors
/// [`Abstention::Unparsable`] for a `thinking` field that Dynamo refuses.
pub(crate) fn resolve(
    wishes: &ThinkingWishes<'_>,
    arguments: &mut Option<TemplateArguments>,
) -> Result<(), Abstention> {
    resolve_fields(wishes, arguments)?;
    apply_default(wishes.default_mode, arguments);
    unify_switches(arguments);
    Ok(())
}

/// The mode that a `thinking` field asks for.
///
///
/// # Errors
/// [`Abstention::Unparsable`] for any other value: Dynamo refuses the request.
fn mode_of(thinking: &Value) -> Result<&'static str, Abstention> {
    let word = match thinking {
        Value::Bool(true) => "enabled",
        Value::Bool(false) => "disabled",
        Value::Object(object) => object.get("type").and_then(Value::as_str).unwrap_or_default(),
        _ => "",
    };
    ["enabled", "disabled", ADAPTIVE]
        .into_iter()
        .find(|known| *known == word)
        .ok_or(Abstention::Unparsable)
}

/// Writes the fields of the request into the arguments. A request without any wish keeps its
/// arguments as they are.
fn resolve_fields(
    wishes: &ThinkingWishes<'_>,
    arguments: &mut Option<TemplateArguments>,
) -> Result<(), Abstention> {
    let mode = wishes.thinking.map(mode_of).transpose()?;
    let named = |key: &str| arguments.as_ref().is_some_and(|args| args.contains_key(key));
    // A top-level effort wins over an effort among the template's arguments, where `null` says nothing.
    let effort = wishes.effort.clone().or_else(|| {
        let nested = arguments.as_ref()?.get(REASONING_EFFORT)?;
        (!nested.is_null()).then(|| nested.clone())
    });
    let has_switch = [THINKING, ENABLE_THINKING, THINKING_MODE].into_iter().any(named);
    if mode.is_none() && effort.is_none() && !has_switch {
        return Ok(());
    }
    let arguments = arguments.get_or_insert_default();
    match mode {
        Some(ADAPTIVE) => {
            // The model decides, so no switch may stay.
            arguments.remove(THINKING);
            arguments.remove(ENABLE_THINKING);
            arguments.insert(THINKING_MODE.into(), ADAPTIVE.into());
        }
        Some(mode) => set_mode(arguments, mode == "enabled"),
        None => {}
    }
    if let Some(is_on) = decision(arguments, effort.as_ref()) {
        set_mode(arguments, is_on);
    }
    if let Some(effort) = effort {
        arguments.insert(REASONING_EFFORT.into(), effort);
    }
    Ok(())
}

/// Whether thinking is on: the first boolean switch decides, then the mode, then a named effort.
fn decision(arguments: &TemplateArguments, effort: Option<&Value>) -> Option<bool> {
    let switches = [THINKING, ENABLE_THINKING];
    if let Some(is_on) = switches
        .into_iter()
        .find_map(|key| arguments.get(key).and_then(Value::as_bool))
    {
        return Some(is_on);
    }
    let mode = arguments.get(THINKING_MODE).and_then(Value::as_str);
    match mode.map(str::to_ascii_lowercase).as_deref() {
        Some(ADAPTIVE) => None,
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        _ => effort.and_then(Value::as_str).map(|effort| effort != "none"),
    }
}

/// Sets all three switches to one value.
fn set_mode(arguments: &mut TemplateArguments, is_on: bool) {
    arguments.insert(THINKING.into(), is_on.into());
    arguments.insert(ENABLE_THINKING.into(), is_on.into());
    let mode = if is_on { "enabled" } else { "disabled" };
    arguments.insert(THINKING_MODE.into(), mode.into());
}

/// The model card's mode, for a request that says nothing about thinking.
fn apply_default(default_mode: Option<&str>, arguments: &mut Option<TemplateArguments>) {
    let keys = [THINKING, ENABLE_THINKING, THINKING_MODE, REASONING_EFFORT];
    let has_wish = arguments
        .as_ref()
        .is_some_and(|args| keys.into_iter().any(|key| args.contains_key(key)));
    let is_on = match default_mode {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => return,
    };
    if !has_wish {
        set_mode(arguments.get_or_insert_default(), is_on);
    }
}

/// Both boolean switches get the value of the first switch that says something.
fn unify_switches(arguments: &mut Option<TemplateArguments>) {
    let Some(arguments) = arguments else { return };
    if let Some(is_on) = first_switch(arguments) {
        arguments.insert(THINKING.into(), is_on.into());
        arguments.insert(ENABLE_THINKING.into(), is_on.into());
    }
}

/// Value of the first switch that decides; `None` when none does. Text in a boolean switch counts
/// as false unless it spells true.
fn first_switch(arguments: &TemplateArguments) -> Option<bool> {
    for key in [THINKING, ENABLE_THINKING, THINKING_MODE] {
        match arguments.get(key) {
            Some(Value::Bool(is_on)) => return Some(*is_on),
            // A mode beside on and off, such as `adaptive`, leaves the switches as they are.
            Some(Value::String(text)) if key == THINKING_MODE => return mode_switch(text),
            Some(Value::String(text)) => return Some(truth(text) == Some(true)),
            Some(Value::Number(number)) => return number.as_f64().map(|number| number != 0.0),
            _ => {}
        }
    }
    None
}

/// Value of a mode in words; `None` for a mode beside on and off.
fn mode_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => truth(text),
    }
}

/// Dynamo's spellings of true and false; `None` for any other text.
fn truth(text: &str) -> Option<bool> {
    match text.trim().to_lowercase().as_str() {
        "1" | "true" | "on" | "yes" => Some(true),
        "0" | "false" | "off" | "no" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resolved(thinking: Value, effort: Value, arguments: Value, default_mode: Option<&str>) -> Value {
        let thinking = (!thinking.is_null()).then_some(thinking);
        let wishes = ThinkingWishes {
            thinking: thinking.as_ref(),
            effort: (!effort.is_null()).then_some(effort),
            default_mode,
        };
        let mut arguments = serde_json::from_value(arguments).unwrap();
        resolve(&wishes, &mut arguments).unwrap();
        serde_json::to_value(arguments).unwrap()
    }

    #[test]
    fn request_without_a_wish_keeps_its_arguments() {
        assert_eq!(resolved(json!(null), json!(null), json!(null), None), json!(null));
        let other = json!({"custom": 1});
        assert_eq!(resolved(json!(null), json!(null), other.clone(), None), other);
    }

    #[test]
    fn wish_is_stated_in_every_argument() {
        let on = json!({"thinking": true, "enable_thinking": true, "thinking_mode": "enabled"});
        assert_eq!(resolved(json!(true), json!(null), json!(null), None), on);
        assert_eq!(
            resolved(json!({"type": "enabled"}), json!(null), json!(null), None),
            on
        );
        let off = json!({"thinking": false, "enable_thinking": false, "thinking_mode": "disabled"});
        assert_eq!(
            resolved(json!(null), json!(null), json!({"enable_thinking": false}), None),
            off
        );
        assert_eq!(
            resolved(json!(null), json!(null), json!(null), Some("disabled")),
            off
        );
    }

    #[test]
    fn effort_switches_thinking_unless_a_switch_says_otherwise() {
        let high = resolved(json!(null), json!("high"), json!(null), None);
        assert_eq!(
            (&high["thinking"], &high["reasoning_effort"]),
            (&json!(true), &json!("high"))
        );
        let none = resolved(json!(null), json!("none"), json!(null), None);
        assert_eq!(none["thinking"], json!(false));
        let switched = resolved(json!(null), json!("high"), json!({"thinking": false}), None);
        assert_eq!(switched["enable_thinking"], json!(false));
    }

    #[test]
    fn adaptive_thinking_leaves_no_switch() {
        let adaptive = resolved(
            json!({"type": "adaptive"}),
            json!(null),
            json!({"thinking": true}),
            None,
        );
        assert_eq!(adaptive, json!({"thinking_mode": "adaptive"}));
    }

    #[test]
    fn switch_spelt_as_text_or_number_counts() {
        let arguments = json!({"thinking": "yes"});
        assert_eq!(
            resolved(json!(null), json!(null), arguments, None)["enable_thinking"],
            json!(true)
        );
        let arguments = json!({"enable_thinking": 0});
        assert_eq!(
            resolved(json!(null), json!(null), arguments, None)["thinking"],
            json!(false)
        );
    }

    #[test]
    fn thinking_of_another_type_is_refused_as_dynamo_refuses_it() {
        for thinking in [json!("on"), json!(1), json!({"type": "maybe"})] {
            let wishes = ThinkingWishes {
                thinking: Some(&thinking),
                effort: None,
                default_mode: None,
            };
            assert_eq!(resolve(&wishes, &mut None), Err(Abstention::Unparsable));
        }
    }
}
