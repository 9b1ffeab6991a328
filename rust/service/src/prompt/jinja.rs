//! The Jinja environment that Hugging Face chat templates expect.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};

use super::strings;

/// Steps that one rendering may take: a template comes from a model folder, but a loop in it must end.
const FUEL: u64 = 20_000_000;

/// An environment with `tojson`, `fromjson`, `raise_exception`, `strftime_now`, Python methods, loop controls, and the
/// whitespace rules of `apply_chat_template`.
pub fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    env.set_syntax(syntax.expect("default delimiters must be valid"));
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(format_value);
    env.add_filter("tojson", to_json);
    env.add_filter("fromjson", from_json);
    env.add_filter("from_json", from_json);
    env.add_filter("length", length);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env
}

/// Template source in the dialect of this engine: `{% generation %}` only marks text, and `x.items()` must not find a key `items`.
pub fn adapt_source(source: &str) -> String {
    let mut out = source.replace(".items()", "|items");
    for dash in ["", "-"] {
        for end in ["", "-"] {
            for (tag, with) in [("generation", "with"), ("endgeneration", "endwith")] {
                out = out.replace(
                    &format!("{{%{dash} {tag} {end}%}}"),
                    &format!("{{%{dash} {with} {end}%}}"),
                );
            }
        }
    }
    out
}

fn format_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    // Dynamo's engine spells these in lower case, and its spelling is what the cache was filled with.
    if value.is_none() {
        return out.write_str("none").map_err(Error::from);
    }
    if value.kind() == ValueKind::Bool {
        return out
            .write_str(if value.is_true() { "true" } else { "false" })
            .map_err(Error::from);
    }
    if value.is_number()
        && !value.is_integer()
        && let Ok(float) = f64::try_from(value.clone())
    {
        return out.write_str(&strings::float_repr(float)).map_err(Error::from);
    }
    escape_formatter(out, state, value)
}

#[allow(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let text = strings::dumps(&value, indent.map(|width| width.min(16)));
    let text =
        text.map_err(|e| Error::new(ErrorKind::BadSerialization, "not serialisable").with_source(e))?;
    Ok(Value::from_safe_string(text))
}

fn from_json(value: Value) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return Ok(value);
    };
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(text);
    let parsed = parsed.map_err(|e| Error::new(ErrorKind::InvalidOperation, "not JSON").with_source(e))?;
    Ok(Value::from(Serde(&parsed)))
}

/// `tools | length` with `tools = none` is 0 in the templates' own habits.
#[allow(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn length(value: Value) -> usize {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => 0,
        _ => value.len().unwrap_or(0),
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<Value, Error> {
    use std::fmt::Write as _;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "unknown strftime directive"))?;
    Ok(Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn render(source: &str, ctx: Value) -> Result<String, Error> {
        let mut env = environment();
        env.add_template_owned("t", adapt_source(source))?;
        env.get_template("t")?.render(ctx)
    }

    #[test]
    fn block_tags_leave_no_line_of_their_own() {
        let source = "{% for m in ms %}\n    {% if m %}\n{{ m }}\n    {% endif %}\n{% endfor %}\nend";
        assert_eq!(render(source, context! { ms => ["a"] }).unwrap(), "a\nend");
    }

    #[test]
    fn tojson_is_json_dumps() {
        let ctx = context! { x => Serde(serde_json::json!({"a": "<ü>", "b": [1, 1e-7]})) };
        assert_eq!(
            render("{{ x | tojson }}", ctx).unwrap(),
            r#"{"a": "<ü>", "b": [1, 1e-07]}"#
        );
    }

    #[test]
    fn raised_exception_is_an_error() {
        assert!(render("{{ raise_exception('no') }}", context! {}).is_err());
    }

    #[test]
    fn items_method_does_not_find_a_key_of_that_name() {
        let ctx = context! { x => Serde(serde_json::json!({"items": 1, "type": "a"})) };
        assert_eq!(
            render("{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}", ctx).unwrap(),
            "items=1;type=a;"
        );
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        let source = "{% for m in ms %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.strip().upper() }}{% endfor %}";
        assert_eq!(
            render(source, context! { ms => [" a ", "b", "c"] }).unwrap(),
            "AB"
        );
    }

    #[test]
    fn endless_template_runs_out_of_fuel() {
        let source = "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
        assert!(render(source, context! {}).is_err());
    }

    #[test]
    fn generation_tags_only_mark_text() {
        assert_eq!(
            render("a{% generation %}b{% endgeneration %}c", context! {}).unwrap(),
            "abc"
        );
    }
}
