//! How are bytes taken from a datagram without ever reading past its end?

use crate::error::DecodeError;

/// A cursor over borrowed bytes; every read names the field it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns what has not been read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Returns the bytes read since `earlier`, a copy of this reader.
    pub(crate) fn since(&self, earlier: &Self) -> &'a [u8] {
        let count = earlier.rest.len().saturating_sub(self.rest.len());
        earlier.rest.get(..count).unwrap_or_default()
    }

    pub(crate) fn bytes(
        &mut self,
        field: &'static str,
        count: usize,
    ) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            let missing = count - self.rest.len();
            return Err(DecodeError::Truncated { field, missing });
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            let missing = N - self.rest.len();
            return Err(DecodeError::Truncated { field, missing });
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// Takes the bytes before the next zero byte, and drops that byte.
    pub(crate) fn zero_terminated(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let Some(end) = self.rest.iter().position(|byte| *byte == 0) else {
            return Err(DecodeError::Truncated { field, missing: 1 });
        };
        let text = self.bytes(field, end)?;
        self.u8(field)?;
        Ok(text)
    }

    /// Checks that the message ends here.
    pub(crate) const fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            excess => Err(DecodeError::TrailingBytes(excess)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_read_names_the_field_and_what_is_missing() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u16("first"), Ok(0x0102));
        let error = Err(DecodeError::Truncated {
            field: "second",
            missing: 3,
        });
        assert_eq!(reader.u32("second"), error);
        assert_eq!(reader.rest(), [3]);
        assert_eq!(reader.end(), Err(DecodeError::TrailingBytes(1)));
    }

    #[test]
    fn names_end_at_their_zero_byte() {
        let mut reader = Reader::new(b"ab\0c");
        assert_eq!(reader.zero_terminated("name"), Ok(b"ab".as_slice()));
        assert!(reader.zero_terminated("name").is_err());
    }
}
