//! Protobuf's wire format: what comes next, without copying it.

/// What a field's key says of its value. Groups (3, 4) are in no message of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireType {
    Varint,
    Fixed64,
    Bytes,
    Fixed32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum WireValue<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// In no field of Kubernetes' messages.
    Fixed32,
}

/// Iterates over the fields of a message as they are in it: number and value. Ends after the first error.
#[derive(Debug, Clone)]
pub(super) struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Message { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            // Of the tenth byte one bit is left.
            if at == 9 && *byte > 1 {
                return Err("a varint of more than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err("a varint without an end")
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], &'static str> {
        let length = usize::try_from(length).map_err(|_| "a length beyond the message")?;
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or("a length beyond the message")?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn value(&mut self, ty: WireType) -> Result<WireValue<'a>, &'static str> {
        Ok(match ty {
            WireType::Varint => WireValue::Varint(self.varint()?),
            WireType::Fixed64 => {
                let bytes = self.take(8)?.try_into().map_err(|_| "a short fixed64")?;
                WireValue::Fixed64(u64::from_le_bytes(bytes))
            }
            WireType::Bytes => {
                let length = self.varint()?;
                WireValue::Bytes(self.take(length)?)
            }
            WireType::Fixed32 => {
                self.take(4)?;
                WireValue::Fixed32
            }
        })
    }

    fn field(&mut self) -> Result<(u32, WireValue<'a>), &'static str> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| "a field number beyond 2^29")?;
        if number == 0 || number >= 1 << 29 {
            return Err("a field number that is none");
        }
        let ty = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Bytes,
            3 | 4 => return Err("a group: no message of Kubernetes has one"),
            5 => WireType::Fixed32,
            _ => return Err("a wire type that is none"),
        };
        Ok((number, self.value(ty)?))
    }
}

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u32, WireValue<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_to_its_end_or_to_its_first_mistake() {
        let good: &[u8] = b"\x08\x96\x01\x12\x02hi\x19\x01\0\0\0\0\0\0\0\x25\x01\0\0\0";
        let fields: Result<Vec<_>, _> = Message::new(good).collect();
        assert_eq!(
            fields.expect("a good message"),
            [
                (1, WireValue::Varint(150)),
                (2, WireValue::Bytes(b"hi")),
                (3, WireValue::Fixed64(1)),
                (4, WireValue::Fixed32),
            ]
        );
        let bad: &[(&[u8], &str)] = &[
            (b"\x08", "without an end"),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                "64 bits",
            ),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "64 bits"),
            (b"\x12\x03hi", "beyond the message"),
            (
                b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7fhi",
                "beyond the message",
            ),
            (
                b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01hi",
                "beyond the message",
            ),
            (b"\x0b\x0b\x0b", "group"),
            (b"\x0c", "group"),
            (b"\x0e\x00", "wire type"),
            (b"\x00\x00", "number"),
            (b"\xff\xff\xff\xff\x7f\x00", "number"),
            (b"\x19\x01", "beyond the message"),
        ];
        for (bytes, says) in bad {
            let error = Message::new(bytes)
                .collect::<Result<Vec<_>, _>>()
                .expect_err(says);
            assert!(error.contains(says), "{bytes:?}: {error}");
        }
    }
}
