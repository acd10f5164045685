//! A configuration made of a template and the node's ranges, once the kubelet tells them: the part of Go's template language that
//! templates for containerd use, so that theirs work here.
//!
//! `{{.PodCIDR}}`, `{{range $i, $x := .PodCIDRRanges}}…{{end}}` (or `.Routes`, also as `range $x := …` and `range …` with `{{.}}` inside),
//! `{{if $i}}…{{else}}…{{end}}`, `{{$x}}`, and `{{-`, `-}}` that take white space along.

use std::net::IpAddr;

use ipnet::IpNet;

/// Deeper templates are none that anybody wrote.
const MAX_DEPTH: usize = 16;
/// Two families, and ranges in ranges: what comes out stays a page.
const MAX_BYTES: usize = 1 << 20;

/// The template with the ranges filled in.
pub fn render(template: &str, ranges: &[IpNet]) -> Result<String, String> {
    let tokens = tokens(template)?;
    let mut at = 0;
    let nodes = parse(&tokens, &mut at, 0)?;
    if at < tokens.len() {
        return Err(format!(
            "{{{{{}}}}} has nothing before it",
            word(&tokens[at])
        ));
    }
    let values = Values {
        cidrs: ranges.iter().map(IpNet::to_string).collect(),
        routes: ranges.iter().map(everything_of).collect(),
        variables: vec![],
    };
    let mut out = String::new();
    write(&nodes, values, &mut out)?;
    Ok(out)
}

fn everything_of(range: &IpNet) -> String {
    match range.addr() {
        IpAddr::V4(_) => "0.0.0.0/0".into(),
        IpAddr::V6(_) => "::/0".into(),
    }
}

#[derive(Debug)]
enum Token {
    Text(String),
    Action(String),
}

fn word(token: &Token) -> &str {
    match token {
        Token::Text(text) | Token::Action(text) => text,
    }
}

#[derive(Debug)]
enum Node {
    Text(String),
    Value(String),
    Range {
        index: Option<String>,
        item: String,
        list: String,
        body: Vec<Node>,
    },
    If {
        condition: String,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

fn tokens(template: &str) -> Result<Vec<Token>, String> {
    let mut all = Vec::new();
    let mut rest = template;
    let mut trim = false;
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or("a {{ without its }}")?;
        let before = match action.strip_prefix('-') {
            Some(_) => text.trim_end(),
            None => text,
        };
        all.push(Token::Text(match trim {
            true => before.trim_start().to_owned(),
            false => before.to_owned(),
        }));
        trim = action.ends_with('-');
        let action = action.trim_start_matches('-').trim_end_matches('-').trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            all.push(Token::Action(action.to_owned()));
        }
        rest = after;
    }
    all.push(Token::Text(match trim {
        true => rest.trim_start().to_owned(),
        false => rest.to_owned(),
    }));
    Ok(all)
}

/// Up to the `end` or `else` of what it is in, which is left.
fn parse(tokens: &[Token], at: &mut usize, depth: usize) -> Result<Vec<Node>, String> {
    if depth > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} levels"));
    }
    let mut nodes = Vec::new();
    while let Some(token) = tokens.get(*at) {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text.clone()));
                *at += 1;
                continue;
            }
            Token::Action(action) => action.as_str(),
        };
        if action == "end" || action == "else" {
            return Ok(nodes);
        }
        *at += 1;
        if let Some(over) = action.strip_prefix("range ") {
            let (names, list) = match over.split_once(":=") {
                Some((names, list)) => (names.trim(), list.trim()),
                None => (".", over.trim()),
            };
            let (index, item) = match names.split_once(',') {
                Some((index, item)) => (Some(index.trim().to_owned()), item.trim()),
                None => (None, names),
            };
            let body = parse(tokens, at, depth + 1)?;
            end(tokens, at, action)?;
            nodes.push(Node::Range {
                index,
                item: item.to_owned(),
                list: list.to_owned(),
                body,
            });
        } else if let Some(condition) = action.strip_prefix("if ") {
            let then = parse(tokens, at, depth + 1)?;
            let mut otherwise = Vec::new();
            if matches!(tokens.get(*at), Some(Token::Action(word)) if word == "else") {
                *at += 1;
                otherwise = parse(tokens, at, depth + 1)?;
            }
            end(tokens, at, action)?;
            nodes.push(Node::If {
                condition: condition.trim().to_owned(),
                then,
                otherwise,
            });
        } else {
            nodes.push(Node::Value(action.to_owned()));
        }
    }
    Ok(nodes)
}

fn end(tokens: &[Token], at: &mut usize, of: &str) -> Result<(), String> {
    match tokens.get(*at) {
        Some(Token::Action(word)) if word == "end" => {
            *at += 1;
            Ok(())
        }
        _ => Err(format!("{{{{{of}}}}} has no {{{{end}}}}")),
    }
}

#[derive(Debug, Clone)]
struct Values {
    cidrs: Vec<String>,
    routes: Vec<String>,
    /// Inner ones last.
    variables: Vec<(String, String)>,
}

impl Values {
    fn get(&self, name: &str) -> Result<String, String> {
        if let Some((_, value)) = self.variables.iter().rfind(|(n, _)| n == name) {
            return Ok(value.clone());
        }
        match name {
            ".PodCIDR" => Ok(self.cidrs.first().cloned().unwrap_or_default()),
            _ => Err(unknown(name)),
        }
    }

    fn list(&self, name: &str) -> Result<&[String], String> {
        match name {
            ".PodCIDRRanges" => Ok(&self.cidrs),
            ".Routes" => Ok(&self.routes),
            _ => Err(unknown(name)),
        }
    }
}

fn unknown(name: &str) -> String {
    let name: String = name.chars().take(60).collect();
    format!(
        "{{{{{name}}}}} is not known here: .PodCIDR, range over .PodCIDRRanges and .Routes, if, and their variables are"
    )
}

fn write(nodes: &[Node], values: Values, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Value(name) => out.push_str(&values.get(name)?),
            Node::Range {
                index,
                item,
                list,
                body,
            } => {
                for (n, value) in values.list(list)?.iter().enumerate() {
                    let mut inside = values.clone();
                    if let Some(index) = index {
                        inside.variables.push((index.clone(), n.to_string()));
                    }
                    inside.variables.push((item.clone(), value.clone()));
                    write(body, inside, out)?;
                }
            }
            Node::If {
                condition,
                then,
                otherwise,
            } => {
                let empty = match condition.as_str() {
                    ".PodCIDRRanges" | ".Routes" => values.list(condition)?.is_empty(),
                    // Go's empty number, empty string.
                    name => matches!(values.get(name)?.as_str(), "" | "0"),
                };
                write(if empty { otherwise } else { then }, values.clone(), out)?;
            }
        }
        if out.len() > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes come out"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|range| range.parse().unwrap()).collect()
    }

    #[test]
    fn templates_as_those_for_containerd_are_rendered() {
        let template = r#"{"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
 "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}], "first": "{{.PodCIDR}}"}"#;
        for (given, expected) in [
            (
                &["10.7.0.0/24"][..],
                r#"{"ranges":[[{"subnet":"10.7.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"first":"10.7.0.0/24"}"#,
            ),
            (
                &["10.7.0.0/24", "fd00::/64"],
                r#"{"ranges":[[{"subnet":"10.7.0.0/24"}],[{"subnet":"fd00::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"first":"10.7.0.0/24"}"#,
            ),
        ] {
            let rendered = render(template, &ranges(given)).unwrap();
            let (is, expected): (serde_json::Value, serde_json::Value) = (
                serde_json::from_str(&rendered).unwrap(),
                serde_json::from_str(expected).unwrap(),
            );
            assert_eq!(is, expected);
        }
    }

    #[test]
    fn the_smaller_forms_work_and_white_space_is_trimmed_where_told() {
        let ranges = ranges(&["10.7.0.0/24", "fd00::/64"]);
        for (template, expected) in [
            ("plain", "plain"),
            ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
            ("{{range $x := .Routes}}{{$x}} {{end}}", "0.0.0.0/0 ::/0 "),
            ("a  {{- /* no */ -}}  b", "ab"),
            ("a {{- .PodCIDR -}} b", "a10.7.0.0/24b"),
            ("{{if .PodCIDR}}y{{else}}n{{end}}", "y"),
            ("{{if .Routes}}y{{end}}", "y"),
        ] {
            assert_eq!(render(template, &ranges).unwrap(), expected, "{template}");
        }
        assert_eq!(
            render("{{if .PodCIDR}}y{{else}}n{{end}}", &[]).unwrap(),
            "n"
        );
    }

    #[test]
    fn what_is_not_known_is_told() {
        for (template, says) in [
            ("{{.Node}}", ".Node"),
            ("{{range .Nodes}}{{end}}", ".Nodes"),
            ("{{range .Routes}}", "no {{end}}"),
            ("{{end}}", "nothing before"),
            ("{{", "without its }}"),
            ("{{printf \"x\"}}", "printf"),
        ] {
            let error = render(template, &[]).unwrap_err();
            assert!(error.contains(says), "{template}: {error}");
        }
        assert!(render(&"{{if .PodCIDR}}".repeat(1000), &[]).is_err());
    }

    proptest! {
        #[test]
        fn no_template_makes_it_panic(parts in proptest::collection::vec(prop_oneof![
            Just("{{range .Routes}}"), Just("{{end}}"), Just("{{else}}"), Just("{{if .PodCIDR}}"), Just("{{."), Just("-}}"), Just("{{- x"), Just("é")], 0..12)) {
            let _ = render(&parts.concat(), &ranges(&["10.0.0.0/8"]));
        }
    }
}
