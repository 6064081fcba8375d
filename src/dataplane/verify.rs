#![allow(unsafe_code)] // libbpf-rs has no log buffer for a program

use std::mem::MaybeUninit;

use anyhow::{Context as _, Result, anyhow};
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::{AsRawLibbpf as _, OpenProgramMut};

use super::capacity::Capacity;
use super::load::{Profile, capture, directory_lines, last_lines, open};
use super::skeleton::peer::XdpPeerSkelBuilder;
use super::types::lb_settings;

/// What the kernel's verifier says of a program.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The program and its profile.
    pub program: String,
    /// Instructions walked, of a million allowed.
    pub instructions: u64,
    /// States kept.
    pub states: u64,
    /// Bytes of stack, of each function.
    pub stack: String,
}

/// Only the statistics, not each instruction.
const LOG_STATS: u32 = 4;
const LOG_BYTES: usize = 1 << 16;

/// Has the kernel verify every program in every profile, attaching nothing. Fails with the verifier's message.
pub fn verify_all() -> Result<Vec<Verified>> {
    let mut all = Vec::new();
    for profile in Profile::ALL {
        all.push(verify_balancer(profile)?);
        all.push(verify_balancer(Profile { explain: true, ..profile })?);
    }
    all.extend(verify_peers()?);
    Ok(all)
}

fn verify_balancer(profile: Profile) -> Result<Verified> {
    let mut object = MaybeUninit::uninit();
    let capacity = Capacity::new(1000, 1, 1, 1)?;
    let settings = lb_settings {
        buckets: capacity.buckets,
        service_buckets: capacity.service_buckets,
        origins: capacity.origins,
        // Any key: the instructions do not depend on it, but 0 would be folded away.
        key: [0x9e37_79b9_7f4a_7c15; 4],
        clock_shift: 6,
        ..Default::default()
    };
    let mut skeleton = open(&mut object, profile, &settings)?;
    capacity.apply(&mut skeleton.maps)?;
    let inner = directory_lines(capacity.directory_lines())?;
    use std::os::fd::AsFd as _;
    skeleton
        .maps
        .directory
        .set_inner_map_fd(inner.as_fd())
        .context("could not give the table directory its lines")?;
    let explains = if profile.explain { ", explains" } else { "" };
    let name = format!("xdp_lb ({}{explains})", profile.name());
    let log = log_of(&mut skeleton.progs.xdp_lb)?;
    let loaded = capture(|| skeleton.load());
    let result = loaded.map(drop);
    finish(name, result, &log)
}

fn verify_peers() -> Result<[Verified; 2]> {
    let mut object = MaybeUninit::uninit();
    let builder = XdpPeerSkelBuilder::default();
    let mut skeleton = libbpf_rs::skel::SkelBuilder::open(builder, &mut object)
        .context("could not read the programs that are built into this binary")?;
    let peer = log_of(&mut skeleton.progs.xdp_peer)?;
    let clock = log_of(&mut skeleton.progs.lb_clock)?;
    let result = capture(|| skeleton.load()).map(drop);
    match result {
        Ok(()) => Ok([finish("xdp_peer".into(), Ok(()), &peer)?, finish("lb_clock".into(), Ok(()), &clock)?]),
        Err((error, said)) => {
            Err(anyhow!(error).context(format!("the kernel refused xdp_peer{}", last_lines(&said))))
        }
    }
}

/// Makes the kernel write the verifier's statistics of a program into a buffer, which must outlive its loading.
fn log_of(program: &mut OpenProgramMut<'_>) -> Result<Box<[u8; LOG_BYTES]>> {
    program.set_log_level(LOG_STATS);
    let mut log = Box::new([0u8; LOG_BYTES]);
    // SAFETY: the buffer is live and of this size until after the load: `finish` borrows it then.
    let result = unsafe {
        libbpf_sys::bpf_program__set_log_buf(
            program.as_libbpf_object().as_ptr(),
            log.as_mut_ptr().cast(),
            LOG_BYTES as _,
        )
    };
    match result {
        0 => Ok(log),
        error => Err(std::io::Error::from_raw_os_error(-error)).context("could not give a program a log"),
    }
}

fn finish(
    program: String,
    result: Result<(), (libbpf_rs::Error, String)>,
    log: &[u8; LOG_BYTES],
) -> Result<Verified> {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    if let Err((error, said)) = result {
        let text = if log.trim().is_empty() { said } else { log.into_owned() };
        return Err(anyhow!(error).context(format!("the kernel refused {program}{}", last_lines(&text))));
    }
    Ok(Verified {
        instructions: number_after(&log, "processed ")
            .context("the verifier did not say what it processed")?,
        states: number_after(&log, "total_states ").context("the verifier did not count states")?,
        stack: log
            .lines()
            .find_map(|line| line.strip_prefix("stack depth "))
            .map(|depth| depth.split(" max ").next().unwrap_or(depth).to_owned())
            .context("the verifier did not say how deep the stack is")?,
        program,
    })
}

/// The number that follows a word in the verifier's summary.
fn number_after(log: &str, word: &str) -> Option<u64> {
    let (_, rest) = log.split_once(word)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_summary_is_read() {
        let mut log = Box::new([0; LOG_BYTES]);
        let text = b"verification time 123 usec\nstack depth 200+64\nprocessed 4242 insns (limit 1000000) \
            max_states_per_insn 4 total_states 300 peak_states 200 mark_read 20\n";
        log[..text.len()].copy_from_slice(text);
        let verified = finish("p".into(), Ok(()), &log).unwrap();
        assert_eq!((verified.instructions, verified.states), (4242, 300));
        assert_eq!(verified.stack, "200+64");
    }
}
