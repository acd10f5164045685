use std::fmt;

/// Something about a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// As people write it: `spec.containers[0].image`; empty: the whole.
    pub path: String,
    pub what: String,
}

impl Problem {
    pub fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.path, self.what)
        }
    }
}

/// One a line, each on its own where there are more.
pub(crate) fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => format!(" {one}"),
        many => many.iter().map(|one| format!("\n  {one}")).collect(),
    }
}
