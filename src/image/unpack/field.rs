//! The fields of a header block, 512 bytes: texts end at a NUL, numbers are octal or in base 256.

use super::malformed;
use super::tar::Block;
use crate::error::Result;

/// Up to the first NUL.
pub fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A GNU long name ends in a NUL; bytes behind it are hidden from some readers.
pub fn long_name(name: &[u8]) -> Result<Vec<u8>> {
    let short = text(name);
    if name[short.len()..].iter().any(|&byte| byte != 0) {
        return Err(malformed(format!("NUL in the name {:?}", String::from_utf8_lossy(name))));
    }
    Ok(short.to_vec())
}

/// With the prefix that ustar (not GNU) headers have, and star's shorter one.
pub fn header_path(header: &Block) -> Vec<u8> {
    let name = text(&header[..100]);
    if header[257..263] != *b"ustar\0" {
        return name.to_vec();
    }
    let end = if header[508..] == *b"tar\0" { 476 } else { 500 };
    match text(&header[345..end]) {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

/// The sum of the header's bytes, its own field taken as blanks; old programs added signed bytes.
pub fn check_sum(header: &Block) -> Result<()> {
    let bytes = || header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { b' ' } else { b });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    let told = number(&header[148..156], "check sum")
        .map_err(|error| malformed(format!("{error}: this is no tar archive")))?;
    match told == unsigned || told == signed {
        true => Ok(()),
        false => {
            Err(malformed(format!("a header's check sum is {unsigned}, not {told}: this is no tar archive")))
        }
    }
}

pub fn size(header: &Block) -> Result<u64> {
    let size = number(&header[124..136], "size")?;
    u64::try_from(size).map_err(|_| malformed(format!("a size of {size} bytes")))
}

pub fn id(field: &[u8], what: &str) -> Result<u32> {
    let id = number(field, what)?;
    u32::try_from(id).map_err(|_| malformed(format!("the {what} {id} is out of range")))
}

/// Octal digits among blanks and NULs, or in base 256 with the sign in the second-highest bit.
pub fn number(field: &[u8], what: &str) -> Result<i64> {
    let wrong = || malformed(format!("the {what} {:?} is no number", String::from_utf8_lossy(field)));
    if field[0] & 0x80 != 0 {
        let first = (i64::from(field[0] & 0x7f) << 57) >> 57; // its sign is bit 6
        return field[1..]
            .iter()
            .try_fold(first, |n, &byte| n.checked_mul(256).map(|n| n | i64::from(byte)).ok_or_else(wrong));
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|b| blank(b)).take_while(|b| !blank(b));
    let mut value: i64 = 0;
    let mut length = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err(wrong());
        }
        value = value.checked_mul(8).ok_or_else(wrong)? | i64::from(digit - b'0');
        length += 1;
    }
    let start = field.iter().take_while(|b| blank(b)).count();
    // Digits behind a gap would be read by some and not by others.
    if field[start + length..].iter().any(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let table: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"64 4   \0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf6", Some(-10)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, value) in table {
            assert_eq!(number(field, "size").ok(), *value, "{field:?}");
        }
    }
}
