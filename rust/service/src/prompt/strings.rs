//! How Python spells values: `json.dumps(…, ensure_ascii=False)` and `repr(float)`. Chat templates were written for it.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// `repr(float)`: shortest digits that read back equal; exponent form below 1e-4 and from 1e16 on.
pub fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "NaN".into()
        } else if value > 0.0 {
            "Infinity".into()
        } else {
            "-Infinity".into()
        };
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub fn dumps<T: Serialize>(value: &T, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    if let Some(width) = indent {
        let spaces = vec![b' '; width];
        let formatter = PythonFormat {
            inner: PrettyFormatter::with_indent(&spaces),
            spaced: false,
        };
        value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    } else {
        let formatter = PythonFormat {
            inner: CompactFormatter,
            spaced: true,
        };
        value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    }
    Ok(String::from_utf8(out).expect("a JSON writer must write UTF-8"))
}

/// Python's separators (`", "` and `": "` in the compact form) and floats around another formatter.
struct PythonFormat<F> {
    inner: F,
    spaced: bool,
}

impl<F: Formatter> Formatter for PythonFormat<F> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float_repr(value).as_bytes())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.spaced {
            return if first { Ok(()) } else { writer.write_all(b", ") };
        }
        self.inner.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.spaced {
            return if first { Ok(()) } else { writer.write_all(b", ") };
        }
        self.inner.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_spelled_as_python_does() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.5, "0.5"),
            (1e-6, "1e-06"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (-2.5e-7, "-2.5e-07"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5e300, "1.5e+300"),
        ] {
            assert_eq!(float_repr(value), text);
        }
    }

    #[test]
    fn dumps_uses_python_separators_and_keeps_unicode() {
        let value = json!({"a": [1, 2.0, "ü<>'"], "b": {}, "c": []});
        assert_eq!(
            dumps(&value, None).unwrap(),
            r#"{"a": [1, 2.0, "ü<>'"], "b": {}, "c": []}"#
        );
    }

    #[test]
    fn indent_breaks_lines_as_python_does() {
        let value = json!({"a": [1], "b": {}});
        assert_eq!(
            dumps(&value, Some(2)).unwrap(),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"
        );
    }
}
