//! `xdp-lb capture`: frames as they came and as they left, into a file that Wireshark reads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

use super::Instance;
use super::trace::Teller;
use super::watching::Watching;
use crate::dataplane::{Class, Reason, Seen, Watch};

/// Timestamps count units of 10^-9 seconds (pcapng, `if_tsresol`).
const NANOSECONDS: u8 = 9;
/// What a packet's flags say of its direction (pcapng, `epb_flags`).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes frames in pcapng into a file, or with `-` to stdout.
pub fn capture(watching: &Watching, file: &Path, length: u32, instance: &Instance) -> Result<()> {
    let mut teller = Teller::new(instance)?;
    let told = watching.told(&teller.names, is_usual, &[], Some(length))?;
    // Opened first, because a pipe waits for its reader; emptied when it is sure that it will be written.
    let out = open(file)?;
    let watch = Watch::begin(&instance.pin_dir, &told)?;
    let mut frames = match out.begin().and_then(|out| Frames::new(out, length).map_err(io)) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
        begun => begun.with_context(|| writing(file))?,
    };
    crate::log::notice(&format!("capturing to {}; Ctrl-C ends it", file.display()));
    let mut count = 0_u64;
    watching.go_on(&watch, |seen| {
        let told = teller.tell(seen);
        let comment = format!("{}; {}; {}", told.what(), told.way(), seen.reason.help);
        match frames.add(seen, told.time, comment, |index| teller.names.interface(index)).map_err(io) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
            written => written.with_context(|| writing(file))?,
        }
        count += 1;
        Ok(true)
    })?;
    crate::log::notice(&format!("{count} packets were captured"));
    Ok(())
}

/// All that is balanced or dropped; of what passes by, what should not. (Answers to health checks pass all the time.)
fn is_usual(reason: &Reason) -> bool {
    match reason.class {
        Class::Sent | Class::Stack | Class::Drop | Class::Error => true,
        Class::Pass => ["no_backend", "wrong_interface"].contains(&reason.name),
    }
}

fn writing(file: &Path) -> String {
    let name = if file == Path::new("-") { "stdout".into() } else { file.display().to_string() };
    format!("could not write to {name}")
}

/// What the system said: the crate calls every such error one of reading.
fn io(error: PcapError) -> std::io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => std::io::Error::other(other),
    }
}

/// Where frames go.
enum Out {
    Stdout,
    File(File),
}

fn open(file: &Path) -> Result<Out> {
    const ONLY_OWNER: u32 = 0o600;
    if file == Path::new("-") {
        return Ok(Out::Stdout);
    }
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(ONLY_OWNER).open(file);
    Ok(Out::File(open.with_context(|| format!("could not open {}", file.display()))?))
}

impl Out {
    fn begin(self) -> std::io::Result<Box<dyn Write>> {
        Ok(match self {
            Out::Stdout => Box::new(BufWriter::new(std::io::stdout())),
            Out::File(file) => {
                if file.metadata()?.is_file() {
                    file.set_len(0)?;
                }
                Box::new(BufWriter::new(file))
            }
        })
    }
}

/// A file of frames. Flushed after each packet: whoever reads along sees it at once.
struct Frames {
    writer: PcapNgWriter<Box<dyn Write>>,
    /// The number of each interface in the file.
    interfaces: BTreeMap<u32, u32>,
    length: u32,
}

impl Frames {
    fn new(writer: Box<dyn Write>, length: u32) -> Result<Frames, PcapError> {
        let mut writer = PcapNgWriter::new(writer)?;
        // A disk that is full shows now, not with the first packet, which may never come.
        writer.get_mut().flush().map_err(PcapError::IoError)?;
        Ok(Frames { writer, interfaces: BTreeMap::new(), length })
    }

    fn add(
        &mut self,
        seen: &Seen,
        time: SystemTime,
        comment: String,
        name: impl Fn(u32) -> String,
    ) -> Result<(), PcapError> {
        // What the kernel is to deliver has not left yet.
        let (out, direction) = seen.out_ifindex.map_or((seen.ifindex, None), |out| (out, Some(OUTBOUND)));
        let left = seen.after.iter().map(|left| (left, out, direction));
        for (frame, ifindex, direction) in
            [(&seen.frame, seen.ifindex, Some(INBOUND))].into_iter().chain(left)
        {
            let interface = self.interface(ifindex, &name)?;
            let mut options = vec![EnhancedPacketOption::Comment(Cow::Borrowed(&comment))];
            options.extend(direction.map(EnhancedPacketOption::Flags));
            let packet = EnhancedPacketBlock {
                interface_id: interface,
                timestamp: time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
                // A rewritten frame has the length that it came with.
                original_len: seen.length,
                data: Cow::Borrowed(frame),
                options,
            };
            self.writer.write_pcapng_block(packet)?;
        }
        self.writer.get_mut().flush().map_err(PcapError::IoError)
    }

    fn interface(&mut self, ifindex: u32, name: &impl Fn(u32) -> String) -> Result<u32, PcapError> {
        if let Some(number) = self.interfaces.get(&ifindex) {
            return Ok(*number);
        }
        let description = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.length,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name(ifindex))),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(description)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(ifindex, number);
        Ok(number)
    }
}
