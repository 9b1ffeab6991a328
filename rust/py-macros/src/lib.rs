//! The attribute [`macro@caught`]: no panic of a binding reaches Python as a panic.
//!
//! `PyO3` turns a panic into `PanicException`, which is no `Exception`. It passes every `except Exception` and ends the
//! thread or the process of the caller. The attribute wraps each function instead, so that a panic raises
//! `RuntimeError` like any other fault. It reads tokens without a parser: bindings are plain functions, and a parser
//! would double the compile time of the crate.

use proc_macro::{Delimiter, Group, Ident, Punct, Spacing, Span, TokenStream, TokenTree};

/// Wraps the body of a function, or of every function of an `impl` block, in `crate::panics::caught`.
///
/// A function that returns `PyResult<T>` keeps its type. A function that returns another type `T` then returns
/// `PyResult<T>`, and one without a type returns `PyResult<()>`. Write the attribute above `#[pymethods]` or
/// `#[pyfunction]`. A `return` in a function without `PyResult` does not compile.
#[proc_macro_attribute]
pub fn caught(_arguments: TokenStream, item: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = item.into_iter().collect();
    if tokens.iter().any(|token| is_word(token, "impl")) {
        wrap_block(tokens)
    } else {
        wrap_functions(tokens)
    }
}

/// Wraps every function of an `impl` block: the last token of the item is the block.
fn wrap_block(mut tokens: Vec<TokenTree>) -> TokenStream {
    if let Some(TokenTree::Group(block)) = tokens.pop() {
        let inner = wrap_functions(block.stream().into_iter().collect());
        tokens.push(group(block.delimiter(), inner));
    }
    tokens.into_iter().collect()
}

/// Wraps every function of a list of items. A function ends with the first braces after its `fn`.
fn wrap_functions(tokens: Vec<TokenTree>) -> TokenStream {
    let mut wrapped = Vec::with_capacity(tokens.len());
    let mut signature: Option<Vec<TokenTree>> = None;
    for token in tokens {
        match (&mut signature, token) {
            (Some(_), TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                let signature = signature.take().unwrap_or_default();
                wrapped.extend(wrap(signature, body));
            }
            (Some(signature), token) => signature.push(token),
            (None, token) if is_word(&token, "fn") => signature = Some(vec![token]),
            (None, token) => wrapped.push(token),
        }
    }
    wrapped.extend(signature.unwrap_or_default());
    wrapped.into_iter().collect()
}

/// One function with its wrapped body, from `fn` to the closing brace.
fn wrap(mut signature: Vec<TokenTree>, body: Group) -> Vec<TokenTree> {
    let arrow = (1..signature.len()).find(|&at| is_arrow(&signature[at - 1], &signature[at]));
    let returned = arrow.map(|at| signature.split_off(at + 1)).unwrap_or_default();
    if arrow.is_none() {
        signature.extend(parse("->"));
    }
    let braces = TokenTree::Group(body);
    let inner = if returned.first().is_some_and(|token| is_word(token, "PyResult")) {
        signature.extend(returned);
        braces.into()
    } else {
        let unit = group(Delimiter::Parenthesis, TokenStream::new());
        let returned = if returned.is_empty() { vec![unit] } else { returned };
        signature.extend(parse("::pyo3::PyResult<"));
        signature.extend(returned);
        signature.push(TokenTree::Punct(Punct::new('>', Spacing::Alone)));
        let mut ok = TokenStream::from(TokenTree::Ident(Ident::new("Ok", Span::call_site())));
        ok.extend([group(Delimiter::Parenthesis, braces.into())]);
        ok
    };
    let mut argument: TokenStream = parse("move ||").into_iter().collect();
    argument.extend(inner);
    let mut call: TokenStream = parse("crate::panics::caught").into_iter().collect();
    call.extend([group(Delimiter::Parenthesis, argument)]);
    signature.push(group(Delimiter::Brace, call));
    signature
}

fn group(delimiter: Delimiter, inner: TokenStream) -> TokenTree {
    TokenTree::Group(Group::new(delimiter, inner))
}

/// Tokens of fixed text.
fn parse(text: &str) -> Vec<TokenTree> {
    // A `<` without its `>` is a list of tokens like any other, so that fixed text always parses.
    let tokens: TokenStream = text.parse().unwrap_or_default();
    tokens.into_iter().collect()
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident.to_string() == word)
}

fn is_arrow(first: &TokenTree, second: &TokenTree) -> bool {
    matches!((first, second), (TokenTree::Punct(dash), TokenTree::Punct(head))
        if dash.as_char() == '-' && dash.spacing() == Spacing::Joint && head.as_char() == '>')
}
