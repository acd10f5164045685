//! An expression's words.

use crate::Error;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Ident(Box<str>),
    /// As [`Token::Ident`], but written in backticks: only a field can be called so.
    Quoted(Box<str>),
    Int(Box<str>),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    /// `&&`, `(`, `.`, `in` …
    Sign(&'static str),
    End,
}

/// Longest first.
const SIGNS: [&str; 25] = [
    "&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "+", "-",
    "*", "/", "%", "!", "<", ">", ";",
];
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub(crate) fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// With where each begins.
pub(crate) fn tokens(source: &str) -> Result<Vec<(Token, usize)>, Error> {
    let mut lexer = Lexer { source, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.blanks();
        let at = lexer.at;
        let token = lexer.next()?;
        let ends = token == Token::End;
        tokens.push((token, at));
        if ends {
            return Ok(tokens);
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn wrong<T>(&self, at: usize, why: &str) -> Result<T, Error> {
        Err(Error::compile(
            self.source,
            at,
            &format!("Syntax error: {why}"),
        ))
    }

    fn blanks(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{c}']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// As far as `belongs`.
    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'s str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn next(&mut self) -> Result<Token, Error> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok(Token::End);
        };
        if let Some(text) = self.text()? {
            return Ok(text);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let word = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
            return Ok(match word {
                "in" => Token::Sign("in"),
                word => Token::Ident(word.into()),
            });
        }
        if first == '`' {
            return match rest[1..].split_once('`') {
                Some((name, _))
                    if !name.is_empty()
                        && name
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c)) =>
                {
                    self.at += name.len() + 2;
                    Ok(Token::Quoted(name.into()))
                }
                _ => self.wrong(self.at, "token recognition error at: '`'"),
            };
        }
        let digit_follows = || rest[1..].starts_with(|c: char| c.is_ascii_digit());
        if first.is_ascii_digit() || (first == '.' && digit_follows()) {
            return self.number();
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => self.wrong(self.at, &format!("token recognition error at: {first:?}")),
        }
    }

    fn number(&mut self) -> Result<Token, Error> {
        let at = self.at;
        let rest = self.rest();
        let unsigned = |lexer: &mut Self| {
            lexer.rest().starts_with(['u', 'U']) && {
                lexer.at += 1;
                true
            }
        };
        if rest.starts_with("0x") || rest.starts_with("0X") {
            self.at += 2;
            let digits = self.take(|c| c.is_ascii_hexdigit());
            if unsigned(self) {
                return match u64::from_str_radix(digits, 16) {
                    Ok(number) => Ok(Token::Uint(number)),
                    Err(_) => self.wrong(at, "invalid uint literal"),
                };
            }
            return Ok(Token::Int(format!("0x{digits}").into()));
        }
        self.take(|c| c.is_ascii_digit());
        let mut double = false;
        let after = self.rest();
        if after.starts_with('.') && after[1..].starts_with(|c: char| c.is_ascii_digit()) {
            double = true;
            self.at += 1;
            self.take(|c| c.is_ascii_digit());
        }
        let after = self.rest();
        if let Some(exponent) = after.strip_prefix(['e', 'E']) {
            let digits = exponent.trim_start_matches(['+', '-']);
            if digits.starts_with(|c: char| c.is_ascii_digit()) && exponent.len() - digits.len() < 2
            {
                double = true;
                self.at += 1 + exponent.len() - digits.len();
                self.take(|c| c.is_ascii_digit());
            }
        }
        let text = &self.source[at..self.at];
        if double {
            return match text.parse() {
                Ok(number) => Ok(Token::Double(number)),
                Err(_) => self.wrong(at, "invalid double literal"),
            };
        }
        if unsigned(self) {
            return match text.parse() {
                Ok(number) => Ok(Token::Uint(number)),
                Err(_) => self.wrong(at, "invalid uint literal"),
            };
        }
        Ok(Token::Int(text.into()))
    }

    /// A string or bytes, where one begins here.
    fn text(&mut self) -> Result<Option<Token>, Error> {
        let at = self.at;
        let rest = self.rest();
        let prefix = rest
            .find(|c: char| !"rRbB".contains(c))
            .filter(|end| *end <= 2)
            .unwrap_or(0);
        let marks = rest[..prefix].to_ascii_lowercase();
        let body = &rest[prefix..];
        let Some(quote) = ["\"\"\"", "'''", "\"", "'"]
            .into_iter()
            .find(|quote| body.starts_with(quote))
        else {
            return Ok(None);
        };
        if !matches!(marks.as_str(), "" | "r" | "b" | "rb" | "br") {
            return Ok(None);
        }
        let (raw, bytes) = (marks.contains('r'), marks.contains('b'));
        let mut out = Vec::new();
        let mut rest = &body[quote.len()..];
        loop {
            if let Some(after) = rest.strip_prefix(quote) {
                self.at = self.source.len() - after.len();
                break;
            }
            let Some(c) = rest.chars().next() else {
                return self.wrong(at, "a string that does not end");
            };
            if quote.len() == 1 && (c == '\n' || c == '\r') {
                return self.wrong(at, "a string that does not end in its line");
            }
            if c == '\\' && !raw {
                rest = match escape(&rest[1..], bytes, &mut out) {
                    Some(after) => after,
                    None => {
                        return self
                            .wrong(self.source.len() - rest.len(), "an escape that there isn't");
                    }
                };
                continue;
            }
            rest = &rest[c.len_utf8()..];
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        if bytes {
            return Ok(Some(Token::Bytes(out.into())));
        }
        match String::from_utf8(out) {
            Ok(text) => Ok(Some(Token::Text(text.into()))),
            Err(_) => self.wrong(at, "a string that is no UTF-8"),
        }
    }
}

/// What stands after a backslash; gives what follows it.
fn escape<'s>(text: &'s str, bytes: bool, out: &mut Vec<u8>) -> Option<&'s str> {
    let first = text.chars().next()?;
    let plain = match first {
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(b'\n'),
        'r' => Some(b'\r'),
        't' => Some(b'\t'),
        'v' => Some(11),
        '\\' | '?' | '"' | '\'' | '`' => Some(first as u8),
        _ => None,
    };
    if let Some(plain) = plain {
        out.push(plain);
        return text.get(1..);
    }
    let (digits, radix, skip) = match first {
        'x' | 'X' => (2, 16, 1),
        'u' => (4, 16, 1),
        'U' => (8, 16, 1),
        '0'..='3' => (3, 8, 0),
        _ => return None,
    };
    let number = text.get(skip..skip + digits)?;
    if !number.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let number = u32::from_str_radix(number, radix).ok()?;
    if bytes {
        if digits > 3 {
            return None;
        }
        out.push(u8::try_from(number).ok()?);
    } else {
        let c = char::from_u32(number)?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    text.get(skip + digits..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_read_as_cel_has_them() {
        let one = |source: &str| tokens(source).map(|mut tokens| tokens.swap_remove(0).0);
        for (source, token) in [
            ("12u", Token::Uint(12)),
            ("0xFFu", Token::Uint(255)),
            ("1.5", Token::Double(1.5)),
            (".5", Token::Double(0.5)),
            ("2e3", Token::Double(2000.0)),
            ("12", Token::Int("12".into())),
            ("0x1f", Token::Int("0x1f".into())),
            (r#""a\n\x41\u00e4\101""#, Token::Text("a\nA\u{e4}A".into())),
            (r#"r"a\n""#, Token::Text("a\\n".into())),
            ("'''a'b'''", Token::Text("a'b".into())),
            (r#"b"\xff""#, Token::Bytes([255].into())),
            ("b", Token::Ident("b".into())),
            ("rb2", Token::Ident("rb2".into())),
            ("`a.b/c`", Token::Quoted("a.b/c".into())),
            ("in", Token::Sign("in")),
            ("// all of it", Token::End),
        ] {
            assert_eq!(one(source).as_ref(), Ok(&token), "{source}");
        }
        for source in [
            "'a",
            "'a\nb'",
            r"'\q'",
            r"'\uD800'",
            "#",
            "`a",
            r"b'\u0041'",
            "99999999999999999999u",
        ] {
            assert!(tokens(source).is_err(), "{source}");
        }
    }
}
