//! Cases that other servers are known to fail: which versions, and where that can be read or seen.

use serde::Deserialize;

const TABLE: &str = include_str!("known_faults.json");

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// `RPC/sentence`
    pub case: String,
    /// The `runtime_name` that the server tells.
    pub server: String,
    /// Its first version without the fault; absent: none is known.
    #[serde(default)]
    pub until: Option<String>,
    /// The behaviour, and the public issue or source that tells of it.
    pub why: String,
}

fn table() -> Vec<Fault> {
    serde_json::from_str(TABLE).expect("a test below reads it too")
}

/// The faults of one version of a server.
pub fn of(server: &str, version: &str) -> Vec<Fault> {
    let mut faults = table();
    faults.retain(|fault| fault.server == server);
    faults.retain(|fault| match &fault.until {
        None => true,
        Some(until) => numbers(version) < numbers(until),
    });
    faults
}

/// `v1.6.20~ds1` → 1, 6, 20.
fn numbers(version: &str) -> Vec<u32> {
    let version = version.trim_start_matches('v');
    let end = version.find(|c: char| c != '.' && !c.is_ascii_digit());
    let plain = &version[..end.unwrap_or(version.len())];
    plain
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::GROUPS;

    #[test]
    fn every_fault_is_one_of_a_case_and_says_why() {
        for fault in table() {
            let known = GROUPS
                .iter()
                .flat_map(|(_, cases)| *cases)
                .any(|case| case.id() == fault.case);
            assert!(known, "{} is no case", fault.case);
            assert!(fault.why.len() > 20, "{}", fault.case);
            assert!(["containerd", "cri-o"].contains(&fault.server.as_str()));
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        for (version, expected) in [
            ("v1.6.20", vec![1, 6, 20]),
            ("1.6.20~ds1", vec![1, 6, 20]),
            ("2.1.9-dev", vec![2, 1, 9]),
            ("", vec![]),
        ] {
            assert_eq!(numbers(version), expected);
        }
        assert!(numbers("1.10.0") > numbers("1.9.9"));
    }
}
