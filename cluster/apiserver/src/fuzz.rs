//! What the fuzz target drives (see `fuzz/README.md`), and the tests here with selectors that are made up: whatever is sent is refused, or it selects, and
//! as all of its parts do.

use crate::selector::{FieldSelector, LabelSelector};

const LABELS: [(&str, &str); 4] = [
    ("app", "web"),
    ("a.example.com/b", ""),
    ("n", "5"),
    ("x", "y-z"),
];

fn label(key: &str) -> Option<&'static str> {
    let found = LABELS.iter().find(|(name, _)| *name == key);
    found.map(|(_, value)| *value)
}

fn field(path: &str) -> &'static str {
    match path {
        "metadata.name" => "web",
        "status.phase" => "a,b=c\\d",
        _ => "",
    }
}

/// Input: text, as it is in a URL's query once that is decoded.
pub fn selectors(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(selector) = LabelSelector::parse(text) {
        let selects = selector.matches(label);
        assert_eq!(selector.is_everything(), text.trim().is_empty(), "{text:?}");
        // what holds of both holds of each
        if let Ok(both) = LabelSelector::parse(&format!("{text},app=web")) {
            assert_eq!(both.matches(label), selects, "{text:?}");
        }
        if let Ok(never) = LabelSelector::parse(&format!("{text},!app")) {
            assert!(!never.matches(label), "{text:?}");
        }
        assert_eq!(
            LabelSelector::parse(&format!(" {text}\t")).as_ref(),
            Ok(&selector),
            "{text:?}: blanks around it"
        );
        // an object without labels: what it needs is not there
        selector.matches(|_| None);
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let selects = selector.matches(field);
        let both = FieldSelector::parse(&format!("{text},metadata.name=web"));
        assert_eq!(
            both.map(|both| both.matches(field)),
            Ok(selects),
            "{text:?}"
        );
        for path in selector.paths() {
            assert!(!path.contains(['=', '!']), "{text:?}: {path:?}");
            if let Some(value) = selector.required(path) {
                assert!(!selects || field(path) == value, "{text:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const PARTS: [&str; 26] = [
        "app",
        "web",
        "n",
        "5",
        "a.example.com/b",
        "metadata.name",
        "status.phase",
        "=",
        "==",
        "!=",
        "!",
        ",",
        "(",
        ")",
        "in",
        "notin",
        " ",
        "\t",
        ">",
        "<",
        "\\",
        "\\,",
        "\u{e4}",
        "-",
        "/",
        "x",
    ];

    proptest! {
        #[test]
        fn made_up_selectors_are_refused_or_select_as_their_parts_do(parts in vec(select(PARTS.to_vec()), 0..12)) {
            selectors(parts.concat().as_bytes());
        }

        #[test]
        fn any_text_made_up_is_refused_or_selects(text in ".{0,64}") {
            selectors(text.as_bytes());
        }
    }
}
