//! Where in an object something is, as upstream writes it: `spec.containers[0].name`.

use std::fmt;

/// A step down from the object, on the stack of whoever walks it: nothing is allocated until it is written.
#[derive(Debug, Clone, Copy)]
pub enum Path<'a> {
    Root,
    /// A field, or a key of a map.
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => f.write_str(key),
            Path::Key(above, key) => write!(f, "{above}.{key}"),
            Path::Index(above, index) => write!(f, "{above}[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_upstream_writes_them() {
        let spec = Path::Root.key("spec");
        let containers = spec.key("containers");
        let first = containers.index(0);
        assert_eq!(first.key("name").to_string(), "spec.containers[0].name");
        assert_eq!(Path::Root.index(3).to_string(), "[3]");
        assert_eq!(Path::Root.to_string(), "");
    }
}
