//! How many queues an interface should have, and may.

use anyhow::Result;

use super::Wish;
use super::setting::{Queues, Setting};
use crate::dataplane::{Channels, channels, driver_of, queues_with_xdp, xdp_sends_by_lock};
use crate::net::{Link, Netlink, XdpAttached, online_cpus};

/// As many as there are processors: each is served by one at a time.
pub(super) fn queues(link: &Link) -> Result<Vec<Wish>> {
    let Some(own) = channels(&link.name)? else {
        return Ok(vec![Wish::none(
            Setting::Queues(Queues::Combined),
            "the driver does not tell its queues",
        )]);
    };
    let device = Device {
        driver: driver_of(&link.name)?.unwrap_or_default(),
        cpus: u32::try_from(online_cpus()?.len()).unwrap_or(u32::MAX),
        has_program: has_program(link),
        far: far_end(link)?,
        own,
    };
    Ok(kinds_of(&own).iter().filter_map(|kind| device.wish(*kind)).collect())
}

/// Which kind of queues there is to set: of a device that has both kinds the one that it uses, as it may not have them together.
fn kinds_of(channels: &Channels) -> &'static [Queues] {
    let uses_separate = channels.combined == 0 && channels.max_rx > 0 && channels.rx > 0;
    match channels.max_combined > 0 && !uses_separate {
        true => &[Queues::Combined],
        false => &[Queues::Rx, Queues::Tx],
    }
}

/// What decides how many there may be.
struct Device {
    driver: String,
    cpus: u32,
    own: Channels,
    has_program: bool,
    /// The other end of a veth, if it may be looked at.
    far: Option<Far>,
}

/// The other end of a veth.
struct Far {
    has_program: bool,
    channels: Channels,
}

impl Device {
    /// How many of these queues there should be; `None` where the device has none of them.
    fn wish(&self, queues: Queues) -> Option<Wish> {
        let setting = Setting::Queues(queues);
        let (now, all) = queues.of(&self.own);
        let most = queues_with_xdp(&self.driver, all);
        if most == 0 {
            return None;
        }
        let wanted = most.min(self.cpus);
        Some(match self.bound(queues) {
            Some((bound, why)) if !bound.contains(&wanted) => {
                // As near as may be, unless it is there already.
                let nearest = wanted.max(*bound.start()).min(*bound.end()).min(most);
                // The device may not have as many as it takes.
                match nearest == now || !bound.contains(&nearest) {
                    true => Wish::none(setting, &why),
                    false => Wish {
                        note: Some(why),
                        may_be_refused: false,
                        ..Wish::new(setting, &nearest.to_string())
                    },
                }
            }
            bound => {
                let wish = Wish::new(setting, &wanted.to_string());
                Wish {
                    note: self.note(most, all),
                    may_be_refused: wish.may_be_refused && bound.is_none(),
                    ..wish
                }
            }
        })
    }

    /// What the driver of a veth takes: a queue that receives at the end with a program for each that sends at the other. `None`
    /// where it is not known.
    fn bound(&self, queues: Queues) -> Option<(std::ops::RangeInclusive<u32>, String)> {
        let far = self.far.as_ref()?;
        let (sending, receiving) = (far.channels.tx, far.channels.rx);
        Some(match queues {
            Queues::Tx if far.has_program => (
                1..=receiving,
                format!(
                    "the far end has a program, and receives by {receiving}: the driver refuses more than these"
                ),
            ),
            Queues::Rx if self.has_program => (
                sending..=u32::MAX,
                format!(
                    "it has a program, and the far end sends by {sending}: the driver refuses less than these"
                ),
            ),
            _ => (1..=u32::MAX, String::new()),
        })
    }

    fn note(&self, most: u32, all: u32) -> Option<String> {
        let driver = &self.driver;
        if most < all {
            return Some(format!("{driver} needs the others of {all} for what a program sends"));
        }
        xdp_sends_by_lock(driver, all)
            .then(|| format!("{driver} has no queues left for what a program sends, which waits for locks: give the device two for each processor"))
    }
}

fn has_program(link: &Link) -> bool {
    link.xdp.is_some_and(|xdp| xdp.mode == XdpAttached::Native)
}

fn far_end(link: &Link) -> Result<Option<Far>> {
    let Some(peer) = link.peer.filter(|_| link.kind.as_deref() == Some("veth")) else { return Ok(None) };
    let mut netlink = Netlink::open()?;
    let Some(far) = netlink.link_of_peer(peer)? else { return Ok(None) };
    let told = match peer.netns {
        None => channels(&far.name)?,
        Some(netns) => match netlink.namespace(netns)?.and_then(|there| there.run(|| channels(&far.name))) {
            Some(told) => told?,
            None => None,
        },
    };
    Ok(told.map(|channels| Far { has_program: has_program(&far), channels }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn separate(rx: u32, tx: u32) -> Channels {
        Channels { max_rx: 4, max_tx: 4, rx, tx, ..Channels::default() }
    }

    fn device(has_program: bool, far: Option<(bool, Channels)>) -> Device {
        let far = far.map(|(has_program, channels)| Far { has_program, channels });
        Device { driver: "veth".into(), cpus: 4, own: separate(1, 1), has_program, far }
    }

    fn wished(device: &Device, queues: Queues) -> (Result<String, String>, bool) {
        let wish = device.wish(queues).expect("queues");
        (wish.value, wish.may_be_refused)
    }

    #[test]
    fn a_far_end_with_a_program_limits_what_is_sent() {
        let with = |receiving| device(false, Some((true, separate(receiving, 1))));
        assert_eq!(wished(&with(4), Queues::Tx), (Ok("4".into()), false));
        assert_eq!(wished(&with(2), Queues::Tx), (Ok("2".into()), false));
        let (left_alone, _) = wished(&with(1), Queues::Tx);
        assert!(left_alone.is_err_and(|why| why.contains("receives by 1: the driver refuses more")));
        assert_eq!(wished(&with(1), Queues::Rx), (Ok("4".into()), false));
        let without = device(false, Some((false, separate(1, 1))));
        assert_eq!(wished(&without, Queues::Tx), (Ok("4".into()), false));
        // Nobody knows.
        assert_eq!(wished(&device(false, None), Queues::Tx), (Ok("4".into()), true));
    }

    #[test]
    fn with_a_program_it_receives_by_no_less_than_the_far_end_sends() {
        let few = Device { cpus: 2, own: separate(3, 1), ..device(true, Some((false, separate(1, 3)))) };
        let (left_alone, _) = wished(&few, Queues::Rx);
        assert!(left_alone.is_err_and(|why| why.contains("sends by 3: the driver refuses less")));
        assert_eq!(wished(&Device { own: separate(4, 1), ..few }, Queues::Rx), (Ok("3".into()), false));
        // Which was so before the program was there.
        let too_few = Device {
            own: Channels { max_rx: 2, ..separate(2, 1) },
            ..device(true, Some((false, separate(1, 3))))
        };
        let (left_alone, _) = wished(&too_few, Queues::Rx);
        assert!(left_alone.is_err_and(|why| why.contains("sends by 3: the driver refuses less")));
    }

    #[test]
    fn of_two_kinds_the_one_in_use_is_set() {
        let both = Channels { max_combined: 8, ..separate(0, 0) };
        assert_eq!(kinds_of(&Channels { combined: 2, ..both }), [Queues::Combined]);
        assert_eq!(kinds_of(&Channels { rx: 1, tx: 1, ..both }), [Queues::Rx, Queues::Tx]);
        assert_eq!(kinds_of(&separate(1, 1)), [Queues::Rx, Queues::Tx]);
        assert_eq!(kinds_of(&both), [Queues::Combined]);
        assert!(device(false, None).wish(Queues::Combined).is_none());
    }
}
