//! Netlink attributes (type, length, value) of a reply, and the values we read from them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};

/// The attributes in `bytes` as (type without flag bits, value without padding), in their order.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8])>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute.context("reading a netlink attribute")?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        // Not `attribute.value()`: that borrows the attribute, which ends here, instead of `bytes`.
        let value = attribute.into_inner().get(NLA_HEADER_SIZE..length);
        Ok((kind, value.context("a netlink attribute is longer than its message")?))
    })
}

/// The attributes that follow a family's fixed header of `header_len` bytes in the message `payload`.
pub(super) fn attributes_after(
    header_len: usize,
    payload: &[u8],
) -> impl Iterator<Item = Result<(u16, &[u8])>> {
    attributes(payload.get(header_len..).unwrap_or_default())
}

/// An unsigned 32-bit value in host byte order, as rtnetlink has them.
pub(super) fn u32_value(value: &[u8]) -> Result<u32> {
    let bytes = value.try_into().with_context(|| format!("{} bytes where 4 were expected", value.len()))?;
    Ok(u32::from_ne_bytes(bytes))
}

/// A signed 32-bit value in host byte order.
pub(super) fn i32_value(value: &[u8]) -> Result<i32> {
    Ok(i32::from_ne_bytes(u32_value(value)?.to_ne_bytes()))
}

/// An IPv4 address: 4 bytes in network byte order.
pub(super) fn ipv4_value(value: &[u8]) -> Result<Ipv4Addr> {
    let bytes: [u8; 4] = value
        .try_into()
        .with_context(|| format!("{} bytes where an IPv4 address was expected", value.len()))?;
    Ok(Ipv4Addr::from(bytes))
}

/// A string up to its terminating NUL, if it has one. What is not UTF-8 is replaced, never refused.
pub(super) fn string_value(value: &[u8]) -> String {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_padded_attributes_and_hides_flag_bits() -> Result<()> {
        // Type 3 "lo\0" with one byte of padding, then type 18 | NLA_F_NESTED, empty.
        let bytes = [
            &7u16.to_ne_bytes()[..],
            &3u16.to_ne_bytes(),
            b"lo\0\0",
            &4u16.to_ne_bytes(),
            &{ 0x8000u16 | 18 }.to_ne_bytes(),
        ]
        .concat();
        let read = attributes(&bytes).collect::<Result<Vec<_>>>()?;
        assert_eq!(read, [(3, &b"lo\0"[..]), (18, &[][..])]);
        assert_eq!(string_value(read[0].1), "lo");
        Ok(())
    }

    #[test]
    fn refuses_an_attribute_that_is_cut_off() {
        let bytes = [&12u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[10, 0, 0, 1]].concat();
        assert!(attributes(&bytes).any(|attribute| attribute.is_err()));
        assert_eq!(attributes_after(16, &bytes).count(), 0, "a header longer than the message has none");
        assert!(ipv4_value(&[10, 0, 0]).is_err());
        assert!(u32_value(&[]).is_err());
    }
}
