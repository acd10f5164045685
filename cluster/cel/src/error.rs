/// What is wrong with an expression, or went wrong when it ran. The words are upstream's (cel-go's) where it has any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no expression that can be had: where, and why.
    #[error("compilation failed: {0}")]
    Compile(String),
    /// It was run and came to nothing: `no such key: x`, `division by zero`.
    #[error("{0}")]
    Run(String),
    /// It takes more steps than it may.
    #[error("operation cancelled: actual cost limit exceeded")]
    TooCostly,
}

impl Error {
    pub(crate) fn run(why: impl Into<String>) -> Self {
        Self::Run(why.into())
    }

    pub(crate) fn no_overload() -> Self {
        Self::run("no such overload")
    }

    /// At a byte of the source, shown as cel-go shows it.
    pub(crate) fn compile(source: &str, at: usize, why: &str) -> Self {
        let before = source.get(..at).unwrap_or(source);
        let line = before.matches('\n').count();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[start..].chars().count();
        let text: String = source
            .lines()
            .nth(line)
            .unwrap_or_default()
            .chars()
            .take(SHOWN)
            .collect();
        let mut shown = format!(
            "ERROR: <input>:{}:{}: {why}\n | {text}",
            line + 1,
            column + 1
        );
        if column < SHOWN {
            shown.push_str(&format!("\n | {}^", ".".repeat(column)));
        }
        Self::Compile(shown)
    }
}

/// Characters of a line that are shown.
const SHOWN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        let error = Error::compile("a +\n  foo(1)", 6, "undeclared reference to 'foo'");
        assert_eq!(
            error.to_string(),
            "compilation failed: ERROR: <input>:2:3: undeclared reference to 'foo'\n |   foo(1)\n | ..^"
        );
    }
}
