use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};

use super::load::{capture, last_lines, test_run};
use super::skeleton::peer::XdpPeerSkelBuilder;

/// The kernel's jiffies, of which the connection table's clock is made; only a program in the kernel can read them.
pub struct Clock {
    program: OwnedFd,
}

impl Clock {
    /// The rates that kernels are built with.
    const RATES: [u32; 4] = [100, 250, 300, 1000];
    const LOOPBACK: u32 = 1;
    /// Linux takes no frame shorter than an Ethernet header.
    const FRAME: [u8; 64] = [0; 64];

    /// Loads the program that reads the clock.
    pub fn load() -> Result<Clock> {
        let mut object = MaybeUninit::uninit();
        let mut skeleton =
            XdpPeerSkelBuilder::default().open(&mut object).context("could not read the clock program")?;
        skeleton.progs.xdp_peer.set_autoload(false);
        let loaded = capture(|| skeleton.load()).map_err(|(error, log)| {
            anyhow::anyhow!(error).context(format!("could not load the clock program{}", last_lines(&log)))
        })?;
        let program =
            loaded.progs.lb_clock.as_fd().try_clone_to_owned().context("could not keep the clock program")?;
        Ok(Clock { program })
    }

    /// Jiffies: the program writes them over the frame's first bytes.
    pub fn jiffies(&self) -> Result<u64> {
        let (_, frame) = test_run(self.program.as_fd(), &Self::FRAME, Self::LOOPBACK)
            .context("could not read the kernel's clock")?;
        let jiffies = frame.first_chunk().context("the kernel's clock is not in the frame")?;
        Ok(u64::from_ne_bytes(*jiffies))
    }

    /// The connection table's clock: jiffies >> `shift`, 16 bits.
    pub fn now(&self, shift: u32) -> Result<u16> {
        Ok(self.now_long(shift)? as u16)
    }

    /// The clock of client affinity: the same in 32 bits, which last for decades.
    pub fn now_long(&self, shift: u32) -> Result<u32> {
        Ok((self.jiffies()? >> shift) as u32)
    }

    /// Measures how many jiffies make a second. Takes a tenth of a second.
    pub fn measure_hz(&self) -> Result<u32> {
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let (from, jiffies_from) = self.sample()?;
            sleep(Duration::from_millis(100));
            let (to, jiffies_to) = self.sample()?;
            let rate = jiffies_to.wrapping_sub(jiffies_from) as f64 / (to - from).as_secs_f64();
            let nearest = Self::RATES
                .into_iter()
                .min_by(|a, b| off_by(rate, *a).total_cmp(&off_by(rate, *b)))
                .unwrap_or(250);
            // A tick more or less at either end is 10 jiffies a second.
            if (rate - f64::from(nearest)).abs() <= 12.0 {
                return Ok(nearest);
            }
        }
        bail!("could not measure the rate of the kernel's clock: it does not tick evenly")
    }

    /// Jiffies and the instant they were read at, to within a millisecond.
    fn sample(&self) -> Result<(Instant, u64)> {
        const TRIES: usize = 20;
        for _ in 0..TRIES {
            let before = Instant::now();
            let jiffies = self.jiffies()?;
            if before.elapsed() < Duration::from_millis(1) {
                return Ok((before, jiffies));
            }
        }
        bail!("could not read the kernel's clock: the machine is too busy to read it in a millisecond")
    }

    /// The shift that makes a unit of a quarter to half a second.
    pub fn shift(hz: u32) -> u32 {
        hz.div_ceil(4).next_power_of_two().trailing_zeros()
    }
}

fn off_by(rate: f64, nominal: u32) -> f64 {
    (rate / f64::from(nominal)).ln().abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_a_quarter_to_half_a_second() {
        for hz in Clock::RATES {
            let unit = f64::from(1u32 << Clock::shift(hz)) / f64::from(hz);
            assert!((0.25..0.5).contains(&unit), "{hz}: {unit}");
        }
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_the_kernels_rate_is_one_of_the_known() {
        let hz = Clock::load().unwrap().measure_hz().unwrap();
        assert!(Clock::RATES.contains(&hz));
    }
}
