//! D-Bus messages: as much of the wire format as it takes to ask systemd.
//!
//! <https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol-marshaling>

/// A value of a unit's property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    I32(i32),
    U64(u64),
    Text(String),
    Texts(Vec<String>),
    Bytes(Vec<u8>),
    U32s(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Bytes(_) => "ay",
            Self::U32s(_) => "au",
        }
    }
}

/// Values as they stand in a message, each at a multiple of its own size.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub fn u32(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_ne_bytes());
    }

    pub fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.byte(0);
    }

    fn signature(&mut self, signature: &str) {
        self.byte(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.byte(0);
    }

    /// `alignment`: of the elements.
    fn array<T>(
        &mut self,
        alignment: usize,
        elements: impl IntoIterator<Item = T>,
        write: impl Fn(&mut Self, T),
    ) {
        self.u32(0);
        let end_of_length = self.0.len();
        self.align(alignment);
        let start = self.0.len();
        for element in elements {
            self.align(alignment);
            write(self, element);
        }
        let length = (self.0.len() - start) as u32;
        self.0[end_of_length - 4..end_of_length].copy_from_slice(&length.to_ne_bytes());
    }

    /// An array of structures.
    pub fn structures<T>(&mut self, elements: impl IntoIterator<Item = T>, write: impl Fn(&mut Self, T)) {
        self.array(8, elements, write);
    }

    pub fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(is) => self.u32((*is).into()),
            Value::I32(number) => self.u32(*number as u32),
            Value::U64(number) => {
                self.align(8);
                self.0.extend(number.to_ne_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Texts(texts) => self.array(4, texts, |array, text| array.text(text)),
            Value::Bytes(bytes) => self.array(1, bytes, |array, &byte| array.byte(byte)),
            Value::U32s(numbers) => self.u32s(numbers),
        }
    }

    pub fn u32s(&mut self, numbers: &[u32]) {
        self.array(4, numbers, |array, &number| array.u32(number));
    }
}

const ENDIANNESS: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
const PROTOCOL: u8 = 1;

// Kinds of messages.
const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;

// Fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// Whom a call is for.
#[derive(Clone, Copy)]
pub struct Object<'o> {
    pub destination: &'o str,
    pub path: &'o str,
    pub interface: &'o str,
}

/// Who calls does not wait for a reply.
pub const NO_REPLY: u8 = 1;

/// A call with a body of the types `signature`.
pub fn call(
    object: Object<'_>,
    member: &str,
    flags: u8,
    serial: u32,
    signature: &str,
    write: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut body = Writer::default();
    write(&mut body);
    let mut message = Writer(vec![ENDIANNESS, CALL, flags, PROTOCOL]);
    message.u32(body.0.len() as u32);
    message.u32(serial);
    let fields = [
        (PATH, "o", object.path),
        (INTERFACE, "s", object.interface),
        (MEMBER, "s", member),
        (DESTINATION, "s", object.destination),
        (SIGNATURE, "g", signature),
    ];
    message.structures(fields, |header, (field, kind, value)| {
        header.byte(field);
        header.signature(kind);
        if kind == "g" { header.signature(value) } else { header.text(value) }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// A message that has been received.
#[derive(Debug, Default)]
pub struct Message {
    kind: u8,
    /// The serial of the call that it answers; 0 for a signal.
    pub reply_to: u32,
    pub member: String,
    pub sender: String,
    error: String,
    body: Vec<u8>,
}

/// The fixed part, from which the length of the whole can be told.
pub const START: usize = 16; // bytes

/// More than systemd has to say.
const LONGEST: usize = 1 << 20; // bytes

/// How many bytes follow its [`START`].
pub fn rest_of(start: &[u8; START]) -> Option<usize> {
    let number = |at: usize| Reader { bytes: start, at }.u32().map(|n| n as usize);
    let rest = number(12)?.checked_next_multiple_of(8)?.checked_add(number(4)?)?;
    (start[0] == ENDIANNESS && start[3] == PROTOCOL && rest <= LONGEST).then_some(rest)
}

impl Message {
    /// None if it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut message = Self { kind: *bytes.get(1)?, ..Self::default() };
        let mut reader = Reader { bytes, at: 12 };
        let end = START.checked_add(reader.u32()? as usize)?;
        while reader.at < end {
            reader.align(8);
            let field = reader.byte()?;
            match (field, reader.signature()?) {
                (REPLY_SERIAL, "u") => message.reply_to = reader.u32()?,
                (MEMBER, "s") => message.member = reader.text()?.into(),
                (SENDER, "s") => message.sender = reader.text()?.into(),
                (ERROR_NAME, "s") => message.error = reader.text()?.into(),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return None,
            }
        }
        reader.align(8);
        message.body = bytes.get(reader.at..)?.to_vec();
        Some(message)
    }

    pub fn is_reply(&self) -> bool {
        matches!(self.kind, REPLY | ERROR)
    }

    /// The error's name and text, if it is one.
    pub fn error(&self) -> Option<(&str, &str)> {
        (self.kind == ERROR).then(|| (self.error.as_str(), self.body().text().unwrap_or_default()))
    }

    /// The text in the variant that is the body.
    pub fn variant_text(&self) -> Option<&str> {
        let mut body = self.body();
        body.signature().filter(|signature| *signature == "s").and_then(|_| body.text())
    }

    pub fn variant_u64(&self) -> Option<u64> {
        let mut body = self.body();
        body.signature().filter(|signature| *signature == "t").and_then(|_| body.u64())
    }

    pub fn body(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// Values out of a message; None when there are none left.
pub struct Reader<'m> {
    bytes: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.align(8);
        self.take(8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    /// Of an object's path too.
    pub fn text(&mut self) -> Option<&'m str> {
        let length = self.u32()? as usize;
        self.string(length)
    }

    pub fn signature(&mut self) -> Option<&'m str> {
        let length = self.byte()?.into();
        self.string(length)
    }

    fn string(&mut self, length: usize) -> Option<&'m str> {
        let text = self.take(length.checked_add(1)?)?;
        std::str::from_utf8(text.strip_suffix(&[0])?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: Object<'_> = Object { destination: "d.d", path: "/p", interface: "i.i" };

    #[test]
    #[cfg(target_endian = "little")]
    fn a_call_is_laid_out_as_the_specification_says() {
        let call = call(OBJECT, "M", 0, 7, "sa(sv)", |body| {
            body.text("u");
            body.structures([("B", Value::Bool(true)), ("T", Value::U64(5))], |body, (name, value)| {
                body.text(name);
                body.variant(&value);
            });
        });
        let expected: Vec<u8> = [
            b"l\x01\x00\x01\x38\0\0\0\x07\0\0\0\x4c\0\0\0".as_slice(),
            b"\x01\x01o\0\x02\0\0\0/p\0\0\0\0\0\0",
            b"\x02\x01s\0\x03\0\0\0i.i\0\0\0\0\0",
            b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0",
            b"\x06\x01s\0\x03\0\0\0d.d\0\0\0\0\0",
            b"\x08\x01g\0\x06sa(sv)\0\0\0\0\0",
            b"\x01\0\0\0u\0\0\0\x28\0\0\0\0\0\0\0",
            b"\x01\0\0\0B\0\x01b\0\0\0\0\x01\0\0\0",
            b"\x01\0\0\0T\0\x01t\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
        ]
        .concat();
        assert_eq!(call, expected);
    }

    fn reply() -> Vec<u8> {
        let mut bytes = call(OBJECT, "Member", 0, 7, "su", |body| {
            body.text("text");
            body.u32(9);
        });
        bytes[1] = ERROR;
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = reply();
        let start: &[u8; START] = bytes[..START].try_into().unwrap();
        assert_eq!(rest_of(start), Some(bytes.len() - START));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.member.as_str(), message.error()), ("Member", Some(("", "text"))));
        let mut body = message.body();
        assert_eq!((body.text(), body.u32(), body.u32()), (Some("text"), Some(9), None));
    }

    #[test]
    fn a_broken_message_is_no_panic() {
        let whole = reply();
        for length in 0..whole.len() {
            let cut = Message::parse(&whole[..length]);
            assert!(cut.is_none_or(|message| message.body().bytes.len() < 16), "{length} bytes");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = rest_of(bytes[..START].try_into().unwrap());
                if let Some(message) = Message::parse(&bytes) {
                    let _ = (message.error(), message.body().u32(), message.body().signature());
                }
            }
        }
    }
}
