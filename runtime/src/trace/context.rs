//! W3C Trace Context: the `traceparent` that a client sends with its call.

/// The client's span, below which ours begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub sampled: bool,
}

/// `00-<32 digits>-<16 digits>-<2 digits>`, in lower case; a later version may go on after another dash. One that is wrong counts as none
/// (section 4.3 of the recommendation).
pub fn parse(header: &str) -> Option<Remote> {
    let mut parts = header.splitn(5, '-');
    let version: [u8; 1] = digits(parts.next()?)?;
    let trace_id = digits(parts.next()?)?;
    let span_id = digits(parts.next()?)?;
    let [flags]: [u8; 1] = digits(parts.next()?)?;
    let goes_on = parts.next().is_some();
    let known = version == [0];
    if version == [0xff] || (known && goes_on) || trace_id == [0; 16] || span_id == [0; 8] {
        return None;
    }
    Some(Remote {
        trace_id,
        span_id,
        sampled: flags & 1 == 1,
    })
}

fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const SPAN: &str = "b7ad6b7169203331";
        for (header, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-comes-later"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-01-x"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{TRACE}0-{SPAN}-01"), None),
            (format!("00-{TRACE}-{SPAN}-1"), None),
            ("x".repeat(10_000), None),
            (String::new(), None),
        ] {
            let parsed = parse(&header);
            assert_eq!(parsed.map(|p| p.sampled), sampled, "{header:.80}");
            if let Some(parsed) = parsed {
                assert_eq!(hex::encode(parsed.trace_id), TRACE);
                assert_eq!(hex::encode(parsed.span_id), SPAN);
            }
        }
    }
}
