//! D-Bus messages as bytes (D-Bus specification, "Marshaling" and "Message Protocol"): the types that systemd's calls need, no others.

use crate::property::{Property, Value};

/// Our own byte order, which each message names in its first byte.
const ORDER: u8 = if cfg!(target_endian = "little") {
    b'l'
} else {
    b'B'
};
const VERSION: u8 = 1;

/// The specification allows 128 MiB; what systemd tells us is some hundred bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// The fixed part, up to the length of the header's fields.
pub(crate) const FIXED: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Call = 1,
    Answer = 2,
    Error = 3,
    Signal = 4,
}

/// The codes of header fields.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// A method of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    pub destination: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
    pub member: &'static str,
}

/// Writes values one after another, each at its alignment.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_ne_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_ne_bytes());
    }

    pub(crate) fn boolean(&mut self, value: bool) {
        self.u32(value.into());
    }

    pub(crate) fn string(&mut self, value: &str) {
        self.u32(value.len() as u32);
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    pub(crate) fn signature(&mut self, value: &str) {
        self.byte(value.len() as u8);
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// The length of an array does not count the padding before its first element.
    pub(crate) fn array(&mut self, align: usize, elements: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(align);
        let begin = self.0.len();
        elements(self);
        let length = (self.0.len() - begin) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// `a(sv)`
    pub(crate) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |array| {
            for property in properties {
                array.align(8);
                array.string(property.name);
                array.variant(&property.value);
            }
        });
    }

    fn variant(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => {
                self.signature("b");
                self.boolean(*value);
            }
            Value::Number(value) => {
                self.signature("t");
                self.u64(*value);
            }
            Value::Text(value) => {
                self.signature("s");
                self.string(value);
            }
            Value::Processes(pids) => {
                self.signature("au");
                self.array(4, |array| pids.iter().for_each(|pid| array.u32(*pid)));
            }
            Value::Bytes(bytes) => {
                self.signature("ay");
                self.array(1, |array| array.0.extend(bytes));
            }
        }
    }
}

/// A call with arguments of this signature.
pub(crate) fn call(method: &Method, serial: u32, signature: &str, body: Writer) -> Vec<u8> {
    let mut message = Writer::default();
    for byte in [ORDER, Kind::Call as u8, 0, VERSION] {
        message.byte(byte);
    }
    message.u32(body.0.len() as u32);
    message.u32(serial);
    message.array(8, |fields| {
        let strings = [
            (field::PATH, "o", method.path),
            (field::INTERFACE, "s", method.interface),
            (field::MEMBER, "s", method.member),
            (field::DESTINATION, "s", method.destination),
        ];
        for (code, kind, value) in strings {
            fields.align(8);
            fields.byte(code);
            fields.signature(kind);
            fields.string(value);
        }
        if !signature.is_empty() {
            fields.align(8);
            fields.byte(field::SIGNATURE);
            fields.signature("g");
            fields.signature(signature);
        }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// What came in, as far as we look at it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    pub kind: u8,
    pub reply_serial: u32,
    pub member: String,
    pub error_name: String,
    /// The strings and object paths among the arguments, in order; what follows an argument of another type than these and numbers is left out.
    pub strings: Vec<String>,
    /// The numbers, also within a variant; true is 1.
    pub numbers: Vec<u64>,
}

/// How long the whole message is that begins so; none: it is no message that we would read.
pub(crate) fn length(fixed: &[u8; FIXED]) -> Option<usize> {
    if fixed[0] != ORDER || fixed[3] != VERSION {
        return None;
    }
    let number = |at: usize| {
        let bytes = fixed[at..at + 4].try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let (body, fields) = (number(4)?, number(12)?);
    let length = FIXED
        .checked_add(fields)?
        .checked_next_multiple_of(8)?
        .checked_add(body)?;
    (length <= MAX_BYTES).then_some(length)
}

/// Reads a whole message. None: it breaks the protocol.
pub(crate) fn read(bytes: &[u8]) -> Option<Received> {
    let fixed: &[u8; FIXED] = bytes.get(..FIXED)?.try_into().ok()?;
    if length(fixed)? != bytes.len() {
        return None;
    }
    let mut received = Received {
        kind: fixed[1],
        ..Default::default()
    };
    let fields_length = u32::from_ne_bytes(fixed[12..16].try_into().ok()?) as usize;
    let mut reader = Reader {
        bytes: bytes.get(..FIXED + fields_length)?,
        at: FIXED,
    };
    let mut signature = String::new();
    while reader.at < reader.bytes.len() {
        reader.align(8)?;
        let code = reader.byte()?;
        let kind = reader.signature()?;
        match (code, kind.as_str()) {
            (field::REPLY_SERIAL, "u") => received.reply_serial = reader.u32()?,
            (field::SIGNATURE, "g") => signature = reader.signature()?,
            (field::MEMBER, "s") => received.member = reader.string()?,
            (field::ERROR_NAME, "s") => received.error_name = reader.string()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    // The body begins at a multiple of 8, so what is aligned in it is aligned in the message.
    let mut reader = Reader {
        bytes,
        at: (FIXED + fields_length).next_multiple_of(8),
    };
    for kind in signature.chars() {
        match kind {
            's' | 'o' => received.strings.push(reader.string()?),
            // a descriptor is told by its number among those that came along
            'u' | 'b' | 'i' | 'h' => received.numbers.push(reader.u32()?.into()),
            't' => received.numbers.push(reader.u64()?),
            'v' => match reader.signature()?.as_str() {
                "b" | "u" => received.numbers.push(reader.u32()?.into()),
                "t" => received.numbers.push(reader.u64()?),
                _ => break,
            },
            _ => break,
        }
    }
    Some(received)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.align(8)?;
        let bytes = self.take(8)?.try_into().ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }

    fn string(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        self.text(length)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const METHOD: Method = Method {
        destination: "org.example",
        path: "/org/example",
        interface: "org.example.I",
        member: "Do",
    };

    /// A message to us, as a bus would send it.
    pub(crate) fn incoming(
        kind: Kind,
        reply_serial: u32,
        name: &str,
        arguments: &[&str],
    ) -> Vec<u8> {
        let mut body = Writer::default();
        arguments.iter().for_each(|argument| body.string(argument));
        with_body(kind, reply_serial, name, &"s".repeat(arguments.len()), body)
    }

    /// … with arguments of this signature.
    pub(crate) fn with_body(
        kind: Kind,
        reply_serial: u32,
        name: &str,
        signature: &str,
        body: Writer,
    ) -> Vec<u8> {
        let mut message = Writer::default();
        for byte in [ORDER, kind as u8, 0, VERSION] {
            message.byte(byte);
        }
        message.u32(body.0.len() as u32);
        message.u32(7);
        message.array(8, |fields| {
            fields.align(8);
            fields.byte(field::REPLY_SERIAL);
            fields.signature("u");
            fields.u32(reply_serial);
            let code = match kind {
                Kind::Error => field::ERROR_NAME,
                _ => field::MEMBER,
            };
            fields.align(8);
            fields.byte(code);
            fields.signature("s");
            fields.string(name);
            fields.align(8);
            fields.byte(field::SIGNATURE);
            fields.signature("g");
            fields.signature(signature);
        });
        message.align(8);
        message.0.extend(body.0);
        message.0
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let mut body = Writer::default();
        body.string("one");
        body.boolean(true);
        body.string("zwei");
        let bytes = call(&METHOD, 3, "sbs", body);
        assert_eq!(bytes.len() % 4, 1, "a string ends with its NUL");
        let received = read(&bytes).unwrap();
        assert_eq!(received.kind, Kind::Call as u8);
        assert_eq!(received.member, "Do");
        assert_eq!(received.strings, ["one", "zwei"]);
        let error = incoming(Kind::Error, 9, "org.example.Failed", &["why"]);
        let error = read(&error).unwrap();
        assert_eq!((error.kind, error.reply_serial), (3, 9));
        assert_eq!(
            (error.error_name.as_str(), &error.strings[..]),
            ("org.example.Failed", &["why".to_owned()][..])
        );
    }

    /// Of the D-Bus specification: an array's length leaves out the padding before its first element, structs begin at multiples of 8.
    #[test]
    fn properties_lie_where_the_specification_has_them() {
        let mut body = Writer::default();
        body.properties(&[
            Property::new("A", Value::Number(5)),
            Property::new("B", Value::Processes(vec![1, 2])),
        ]);
        let mut expected = Vec::new();
        let number = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_ne_bytes());
        number(&mut expected, 48);
        expected.extend([0; 4]);
        number(&mut expected, 1);
        expected.extend(*b"A\0\x01t\0");
        expected.extend([0; 7]);
        expected.extend(5u64.to_ne_bytes());
        number(&mut expected, 1);
        expected.extend(*b"B\0\x02au\0");
        expected.extend([0; 2]);
        number(&mut expected, 8);
        number(&mut expected, 1);
        number(&mut expected, 2);
        // 8: length and padding.
        assert_eq!(expected.len(), 8 + 48, "the expectation itself");
        assert_eq!(body.0, expected);
    }

    #[test]
    fn what_breaks_the_protocol_is_no_message() {
        let good = incoming(Kind::Signal, 1, "JobRemoved", &["a", "b"]);
        assert!(read(&good).is_some());
        for cut in 0..good.len() {
            assert!(read(&good[..cut]).is_none(), "cut at {cut}");
        }
        // Whatever a byte becomes: it is refused or read, and nothing panics.
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = read(&bad);
            }
        }
        let mut foreign = good.clone();
        foreign[0] = if ORDER == b'l' { b'B' } else { b'l' };
        assert!(read(&foreign).is_none());
        let mut long = [0; FIXED];
        long[0] = ORDER;
        long[3] = VERSION;
        long[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(length(&long), None);
    }
}
