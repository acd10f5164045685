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
    use std::collections::BTreeMap;

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

    /// A requirement, as documents describe it: its text, and what it asks of labels.
    #[derive(Debug, Clone)]
    struct Plain {
        key: &'static str,
        operator: &'static str,
        values: Vec<&'static str>,
    }

    impl Plain {
        fn text(&self, blank: &str) -> String {
            let (key, values) = (self.key, self.values.join(&format!("{blank},")));
            match self.operator {
                "exists" => format!("{blank}{key}"),
                "!" => format!("!{blank}{key}"),
                word @ ("in" | "notin") => format!("{key} {word}{blank}({values}{blank})"),
                sign => format!("{key}{blank}{sign}{blank}{}", self.values[0]),
            }
        }

        fn holds(&self, labels: &BTreeMap<&str, &str>) -> bool {
            let label = labels.get(self.key);
            let among = label.is_some_and(|label| self.values.contains(label));
            let number = |text: &str| text.parse::<i64>().ok();
            let than = self.values.first().and_then(|value| number(value));
            let label_number = label.and_then(|label| number(label));
            match self.operator {
                "exists" => label.is_some(),
                "!" => label.is_none(),
                "in" => among,
                "notin" => !among,
                "=" | "==" => label == self.values.first(),
                "!=" => label != self.values.first(),
                ">" => label_number.zip(than).is_some_and(|(is, than)| is > than),
                _ => label_number.zip(than).is_some_and(|(is, than)| is < than),
            }
        }
    }

    const KEYS: [&str; 3] = ["app", "a.example.com/b", "n"];
    const VALUES: [&str; 5] = ["web", "db", "5", "17", "x-y.z"];
    const NUMBERS: [&str; 3] = ["4", "5", "100"];

    fn plain() -> impl Strategy<Value = Plain> {
        let operator = select(vec![
            "exists", "!", "in", "notin", "=", "==", "!=", ">", "<",
        ]);
        (
            select(KEYS.to_vec()),
            operator,
            vec(select(VALUES.to_vec()), 1..4),
            select(NUMBERS.to_vec()),
        )
            .prop_map(|(key, operator, values, number)| {
                let values = match operator {
                    ">" | "<" => vec![number],
                    _ => values,
                };
                Plain {
                    key,
                    operator,
                    values,
                }
            })
    }

    fn labels() -> impl Strategy<Value = BTreeMap<&'static str, &'static str>> {
        proptest::collection::btree_map(select(KEYS.to_vec()), select(VALUES.to_vec()), 0..4)
    }

    proptest! {
        #[test]
        fn labels_are_selected_as_a_plain_oracle_says(all in vec(plain(), 1..5), labels in labels(), blank in select(vec!["", " ", "\t "])) {
            let text: Vec<String> = all.iter().map(|one| one.text(blank)).collect();
            let text = text.join(&format!("{blank},{blank}"));
            let selector = LabelSelector::parse(&text);
            let selects = selector.as_ref().map(|selector| selector.matches(|key| labels.get(key).copied()));
            prop_assert_eq!(selects, Ok(all.iter().all(|one| one.holds(&labels))), "{:?} {:?}", text, labels);
        }

        #[test]
        fn fields_are_selected_as_a_plain_oracle_says(all in vec((select(vec!["metadata.name", "status.phase"]), any::<bool>(), "[a-c,=\\\\]{0,6}"), 1..4), is in "[a-c,=\\\\]{0,6}") {
            let escaped = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let text: Vec<String> = all.iter().map(|(path, same, value)| format!("{path}{}{}", if *same { "=" } else { "!=" }, escaped(value))).collect();
            let text = text.join(",");
            let selector = FieldSelector::parse(&text);
            // both fields have the same value here
            let selects = selector.as_ref().map(|selector| selector.matches(|_| is.as_str()));
            prop_assert_eq!(selects, Ok(all.iter().all(|(_, same, value)| (*value == is) == *same)), "{:?} {:?}", text, is);
        }

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
