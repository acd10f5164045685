//! What `start` prints: an address alone, which is a shim of task API 2, or a JSON object that says more.

use std::path::PathBuf;

use serde::Deserialize;

use crate::Failure;

/// The newest answer that is understood, as `MAX_SHIM_VERSION` says it to a shim.
pub const NEWEST: u32 = 3;
/// Of an answer that makes no sense, as much is shown.
const SHOWN_CHARS: usize = 80;
/// `sockaddr_un.sun_path` without its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Where a shim listens, and which task service it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    /// Of a unix socket; absolute.
    pub socket: PathBuf,
    /// 2: `containerd.task.v2.Task`; 3: `containerd.task.v3.Task`.
    pub version: u32,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    address: String,
    #[serde(default)]
    protocol: String,
}

impl Bootstrap {
    /// Each of its forms.
    pub fn parse(printed: &[u8]) -> Result<Bootstrap, Failure> {
        let text = String::from_utf8_lossy(printed);
        let text = text.trim();
        let shown: String = text.chars().take(SHOWN_CHARS).collect();
        let garbage = |why: String| Failure::Garbage(format!("it printed {shown:?}: {why}"));
        if text.is_empty() {
            return Err(Failure::Garbage("it printed no address".into()));
        }
        let (address, version) = if text.starts_with('{') {
            let answer: Answer =
                serde_json::from_str(text).map_err(|error| garbage(error.to_string()))?;
            if answer.protocol != "ttrpc" {
                let protocol: String = answer.protocol.chars().take(SHOWN_CHARS).collect();
                return Err(garbage(format!(
                    "protocol {protocol:?} is not spoken here, only ttrpc is"
                )));
            }
            let version = match answer.version {
                version @ 2..=3 => version as u32,
                other => {
                    return Err(garbage(format!(
                        "version {other} is not known, 2 and 3 are"
                    )));
                }
            };
            (answer.address, version)
        } else {
            (text.to_owned(), 2)
        };
        let path = address.strip_prefix("unix://").unwrap_or(&address);
        if !path.starts_with('/')
            || path.len() > MAX_SOCKET_PATH_BYTES
            || path.contains(char::is_control)
        {
            return Err(garbage(
                "that is no address of a unix socket (unix:///PATH)".into(),
            ));
        }
        Ok(Bootstrap {
            socket: path.into(),
            version,
        })
    }

    /// What the task service is called.
    pub fn service(&self) -> &'static str {
        match self.version {
            2 => "containerd.task.v2.Task",
            _ => "containerd.task.v3.Task",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_answer_is_understood() {
        let json = |version| {
            format!(
                r#"{{"version":{version},"address":"unix:///s","protocol":"ttrpc","metadata":{{}}}}"#
            )
        };
        for (text, version) in [
            ("unix:///s".to_owned(), 2),
            (" /s\n".to_owned(), 2),
            (json(2), 2),
            (json(3), 3),
        ] {
            let socket = "/s".into();
            let expected = Bootstrap { socket, version };
            assert_eq!(
                Bootstrap::parse(text.as_bytes()).unwrap(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_shown_with_what_is_wrong_sec_eng_14() {
        for (text, word) in [
            (&b""[..], "no address"),
            (b"\xff\xfe", "no address of a unix socket"),
            (b"hello", "no address of a unix socket"),
            (b"unix://relative", "no address of a unix socket"),
            (b"vsock://3:1024", "no address of a unix socket"),
            (b"/run/s\n/run/t", "no address of a unix socket"),
            (b"{", "EOF"),
            (
                br#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#,
                "\"grpc\" is not spoken here",
            ),
            (
                br#"{"version":4,"address":"unix:///s","protocol":"ttrpc"}"#,
                "version 4",
            ),
            (
                br#"{"version":-1,"address":"unix:///s","protocol":"ttrpc"}"#,
                "version -1",
            ),
            (
                br#"{"address":"unix:///s","protocol":"ttrpc"}"#,
                "version 0",
            ),
            (br#"{"version":2}"#, "only ttrpc"),
            (
                br#"{"version":"3","address":"unix:///s","protocol":"ttrpc"}"#,
                "invalid type",
            ),
        ] {
            let failure = Bootstrap::parse(text).unwrap_err().to_string();
            assert!(failure.contains(word), "{failure}");
        }
        for long in ["x".repeat(10_000), format!("unix:///{}", "x".repeat(200))] {
            let failure = Bootstrap::parse(long.as_bytes()).unwrap_err().to_string();
            assert!(failure.len() < 300, "{failure}");
        }
    }
}
