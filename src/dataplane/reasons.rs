//! What can become of a packet: the list of `include/lb_counters.h`, expanded at build time.

use super::types::lb_constants;

/// What a reason means for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Translated and sent by XDP.
    Sent,
    /// Translated, then handed to the kernel to deliver.
    Stack,
    /// Handed to the kernel untouched.
    Pass,
    /// Dropped.
    Drop,
    /// Dropped, and a sign of a bug or a broken table.
    Error,
}

impl Class {
    /// The name in lower case, as metrics and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Sent => "sent",
            Class::Stack => "stack",
            Class::Pass => "pass",
            Class::Drop => "drop",
            Class::Error => "error",
        }
    }
}

/// One thing that can become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What it means for the packet.
    pub class: Class,
    /// Its number within the class.
    number: u32,
    /// Its name, unique within the class.
    pub name: &'static str,
    /// One line for people.
    pub help: &'static str,
}

impl Reason {
    /// All reasons, by class.
    pub const ALL: &'static [Reason] = include!(concat!(env!("OUT_DIR"), "/reasons.rs"));

    const fn new(class: Class, number: u32, name: &'static str, help: &'static str) -> Reason {
        Reason { class, number, name, help }
    }

    /// The one with this row of the counters.
    pub fn of_code(code: u32) -> Option<&'static Reason> {
        Reason::ALL.iter().find(|reason| reason.code() == code)
    }

    /// The row of the counters, and what the program's steps return.
    pub fn code(&self) -> u32 {
        (self.class as u32) << lb_constants::LB_REASON_BITS.0 | self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::types::lb_reason;

    #[test]
    fn codes_are_those_of_the_program() {
        let code =
            |class, name| Reason::ALL.iter().find(|r| r.class == class && r.name == name).map(Reason::code);
        assert_eq!(code(Class::Sent, "to_client"), Some(lb_reason::LB_SENT_TO_CLIENT.0));
        assert_eq!(code(Class::Stack, "route_by_kernel"), Some(lb_reason::LB_STACK_ROUTE_BY_KERNEL.0));
        assert_eq!(code(Class::Drop, "table_full"), Some(lb_reason::LB_DROP_TABLE_FULL.0));
        assert_eq!(code(Class::Error, "checksum"), Some(lb_reason::LB_ERROR_CHECKSUM.0));
    }

    #[test]
    fn names_and_codes_are_unique() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.code(), b.code(), "{a:?} {b:?}");
                assert!(a.class != b.class || a.name != b.name, "{a:?} {b:?}");
            }
        }
    }
}
