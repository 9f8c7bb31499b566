//! The tokens of a C++ source that the emulation compiles.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    Number,
    /// A string or a character.
    Text,
    Punctuation,
}

/// A token outside comments, in code that is compiled.
#[derive(Clone, Debug)]
pub struct Token {
    pub kind: Kind,
    /// Its bytes in the source.
    pub range: Range<usize>,
    /// The preprocessor's line it stands in, counted from one; `None` in ordinary code.
    pub directive: Option<usize>,
}

/// What a condition of the preprocessor is where mutants are compiled: by the emulation's compiler, without sanitizers.
fn holds(condition: &str) -> Option<bool> {
    Some(match condition {
        "defined(KQM_EMULATION)" | "defined(__cplusplus)" | "KQM_EMULATION_HAS_TABLE" => true,
        "!defined(KQM_EMULATION_ASAN)" | "defined(sigev_notify_thread_id)" => true,
        "defined(__x86_64__)" => cfg!(target_arch = "x86_64"),
        "defined(__aarch64__)" => cfg!(target_arch = "aarch64"),
        "!defined(KQM_EMULATION)" | "KQM_EMULATION_ASAN" | "defined(__SANITIZE_ADDRESS__)" => false,
        "defined(__has_feature)" | "__has_feature(address_sanitizer)" => false,
        "!defined(KQM_FMAD_FALSE)" | "defined(__FAST_MATH__)" => false,
        _ if condition.starts_with("defined(__CUDA_ARCH") => false,
        "KQM_WARPGROUPS" => true,
        "defined(KQM_HAS_SM_90A)" => false,
        _ => return None,
    })
}

/// One level of `#if`.
struct Level {
    /// Whether what follows is compiled, if what is around the level is.
    active: bool,
    /// Whether a branch has been taken.
    taken: bool,
}

/// The longest first.
const PUNCTUATION: [&str; 26] = [
    "<<=", ">>=", "...", "->*", "::", "->", "++", "--", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "+=", "-=",
    "*=", "/=", "%=", "&=", "|=", "^=", "##", ".*",
];

/// The tokens of a source, less those in branches of the preprocessor that are not compiled, and less the names and
/// parameters of macros: of the preprocessor's lines only the bodies of macros are code.
pub fn tokens(source: &str) -> Result<Vec<Token>, String> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    let (mut at, mut line, mut line_start, mut directives) = (0, 1, true, 0);
    while at < bytes.len() {
        let rest = &source[at..];
        if bytes[at] == b'\n' {
            (at, line, line_start) = (at + 1, line + 1, true);
        } else if bytes[at].is_ascii_whitespace() {
            at += 1;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            let length = rest.find("*/").ok_or("a comment without an end")? + 2;
            line += rest[..length].matches('\n').count();
            at += length;
        } else if bytes[at] == b'#' && line_start {
            let length = directive_length(rest);
            let active = levels.iter().all(|level| level.active);
            directives += 1;
            let body = directive(&rest[..length], &mut levels).map_err(|text| format!("line {line}: {text}"))?;
            if active && let Some(body) = body {
                lex(source, at + body..at + length, directives, &mut found)?;
            }
            line += rest[..length].matches('\n').count();
            at += length;
        } else {
            line_start = false;
            let end = token_end(source, at)?;
            if levels.iter().all(|level| level.active) {
                found.push(Token { kind: kind(source, at), range: at..end, directive: None });
            }
            line += source[at..end].matches('\n').count();
            at = end;
        }
    }
    if !levels.is_empty() {
        return Err("an #if without an #endif".into());
    }
    Ok(found)
}

/// Up to the end of the line that does not continue.
fn directive_length(rest: &str) -> usize {
    let mut length = 0;
    for line in rest.split_inclusive('\n') {
        length += line.len();
        if !line.trim_end_matches('\n').ends_with('\\') {
            break;
        }
    }
    length - usize::from(rest[..length].ends_with('\n'))
}

/// Follows a line of the preprocessor; where the body of a macro begins.
fn directive(text: &str, levels: &mut Vec<Level>) -> Result<Option<usize>, String> {
    let plain = text.split("//").next().unwrap_or_default();
    let words = plain.trim_start_matches('#').trim();
    let (name, condition) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
    let value = |condition: &str| holds(condition.trim()).ok_or(format!("is \"{condition}\" true in the emulation?"));
    match name {
        "if" => {
            let active = value(condition)?;
            levels.push(Level { active, taken: active });
        }
        // Guards of headers, and names that are defined only where they are missing.
        "ifndef" => levels.push(Level { active: true, taken: true }),
        "elif" | "else" => {
            let wanted = name == "else" || value(condition)?;
            let level = levels.last_mut().ok_or("an #else without an #if")?;
            level.active = !level.taken && wanted;
            level.taken |= wanted;
        }
        "endif" => {
            levels.pop().ok_or("an #endif without an #if")?;
        }
        "define" => {
            let name_at = text.find(condition.trim_start()).unwrap_or(text.len());
            let rest = &text[name_at..];
            let name_end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let body = match rest[name_end..].strip_prefix('(') {
                Some(parameters) => name_end + 1 + parameters.find(')').map_or(parameters.len(), |at| at + 1),
                None => name_end,
            };
            return Ok(Some(name_at + body));
        }
        "include" | "pragma" | "undef" | "error" => {}
        _ => return Err(format!("#{name} is not understood")),
    }
    Ok(None)
}

/// The tokens of a macro's body.
fn lex(source: &str, range: Range<usize>, directive: usize, found: &mut Vec<Token>) -> Result<(), String> {
    let mut at = range.start;
    while at < range.end {
        let rest = &source[at..range.end];
        if rest.starts_with("//") {
            break;
        } else if rest.starts_with("/*") {
            at += rest.find("*/").ok_or("a comment without an end")? + 2;
        } else if rest.starts_with(|c: char| c.is_ascii_whitespace() || c == '\\') {
            at += 1;
        } else {
            let end = token_end(source, at)?;
            found.push(Token { kind: kind(source, at), range: at..end, directive: Some(directive) });
            at = end;
        }
    }
    Ok(())
}

fn kind(source: &str, at: usize) -> Kind {
    match source.as_bytes()[at] {
        c if c.is_ascii_alphabetic() || c == b'_' => Kind::Word,
        c if c.is_ascii_digit() => Kind::Number,
        b'.' if source.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit) => Kind::Number,
        b'"' | b'\'' => Kind::Text,
        _ => Kind::Punctuation,
    }
}

fn token_end(source: &str, at: usize) -> Result<usize, String> {
    let rest = &source[at..];
    let bytes = rest.as_bytes();
    let length = match kind(source, at) {
        Kind::Word => rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()),
        Kind::Number => {
            let hexadecimal = rest.starts_with("0x");
            let mut end = 1;
            while end < bytes.len() {
                let exponent = if hexadecimal { b"pP" } else { b"eE" };
                let sign = b"+-".contains(&bytes[end]) && exponent.contains(&bytes[end - 1]);
                // Digits may be told apart by apostrophes.
                let digit = bytes[end].is_ascii_alphanumeric() || bytes[end] == b'.';
                let separator = bytes[end] == b'\'' && bytes.get(end + 1).is_some_and(u8::is_ascii_alphanumeric);
                if !sign && !digit && !separator {
                    break;
                }
                end += 1;
            }
            end
        }
        Kind::Text => {
            let mut end = 1;
            while bytes.get(end).ok_or("a string without an end")? != &bytes[0] {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        }
        Kind::Punctuation => {
            let long = PUNCTUATION.iter().find(|text| rest.starts_with(**text));
            long.map_or_else(|| rest.chars().next().map_or(1, char::len_utf8), |text| text.len())
        }
    };
    Ok(at + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source).unwrap().into_iter().map(|token| &source[token.range]).collect()
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(texts("a /* b\n c */ + // d\n\"e + \\\" f\" 'g'"), ["a", "+", "\"e + \\\" f\"", "'g'"]);
    }

    #[test]
    fn numbers_and_punctuation_are_whole() {
        assert_eq!(texts("0x7fu<<=1.5e-3f>>.5"), ["0x7fu", "<<=", "1.5e-3f", ">>", ".5"]);
        assert_eq!(texts("a->b::c 10'000 x-1"), ["a", "->", "b", "::", "c", "10'000", "x", "-", "1"]);
    }

    #[test]
    fn only_compiled_branches_are_code() {
        let source = "#if defined(KQM_EMULATION)\na\n#else\nb\n#if unknown\n#endif\n#endif\nc";
        assert!(tokens(source).unwrap_err().contains("line 5"), "a condition that nobody judged");
        let source =
            "#if defined(KQM_EMULATION)\na\n#else\nb\n#endif\n#ifndef X_H\nc\n#elif KQM_EMULATION_ASAN\nd\n#endif";
        assert_eq!(texts(source), ["a", "c"]);
        assert!(tokens("#if defined(KQM_EMULATION)\n").is_err());
    }

    #[test]
    fn of_macros_the_bodies_are_code() {
        let source = "#define F(x, y) \\\n  (x) + \\\n  y  // z\n#define G 7\n#include <a>\nh";
        assert_eq!(texts(source), ["(", "x", ")", "+", "y", "7", "h"]);
        let found = tokens(source).unwrap();
        assert!(found[0].directive.is_some() && found[0].directive != found[5].directive);
        assert_eq!(found[6].directive, None);
    }
}
