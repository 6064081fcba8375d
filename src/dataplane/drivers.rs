//! What drivers did with XDP in Linux 6.1, for kernels that cannot be asked (before 6.3).

/// What a driver does for a native program, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverXdp {
    /// Sends frames that another interface's program redirects to it (`ndo_xdp_xmit`).
    pub redirect: bool,
    /// Sends back what its own program returns as `XDP_TX`.
    pub tx: bool,
    /// It sends redirected frames only while it has a program itself: before, it has no queues for them.
    pub needs_program: bool,
}

const ALWAYS: DriverXdp = DriverXdp { redirect: true, tx: true, needs_program: false };
const WITH_PROGRAM: DriverXdp = DriverXdp { redirect: true, tx: true, needs_program: true };
const TX_ONLY: DriverXdp = DriverXdp { redirect: false, tx: true, needs_program: false };

/// By the name that `ethtool -i` shows, from the sources of Linux 6.1. veth is not here: with it all depends on the far end.
const DRIVERS: [(&str, DriverXdp); 30] = [
    ("atlantic", WITH_PROGRAM),
    ("bnxt_en", WITH_PROGRAM),
    ("bonding", WITH_PROGRAM),
    ("cpsw", WITH_PROGRAM),
    ("cpsw-switch", WITH_PROGRAM),
    ("ena", WITH_PROGRAM),
    ("fsl_dpaa2_eth", WITH_PROGRAM),
    ("fsl_enetc", WITH_PROGRAM),
    ("funeth", WITH_PROGRAM),
    ("hv_netvsc", WITH_PROGRAM),
    ("i40e", WITH_PROGRAM),
    ("ice", WITH_PROGRAM),
    ("igb", WITH_PROGRAM),
    ("igc", WITH_PROGRAM),
    ("ixgbe", WITH_PROGRAM),
    ("ixgbevf", TX_ONLY),
    ("mana", WITH_PROGRAM),
    ("mlx4_en", TX_ONLY),
    ("mlx5_core", WITH_PROGRAM),
    ("mtk_eth_soc", WITH_PROGRAM),
    ("mvneta", WITH_PROGRAM),
    ("mvpp2", WITH_PROGRAM),
    ("netsec", WITH_PROGRAM),
    ("nfp", TX_ONLY),
    ("qede", WITH_PROGRAM),
    ("rvu-nicpf", WITH_PROGRAM),
    ("sfc", WITH_PROGRAM),
    ("tun", ALWAYS),
    ("vif", WITH_PROGRAM),
    ("virtio_net", WITH_PROGRAM),
];

/// Drivers that need a queue more for each that a program sends by, out of the same number.
const HALF_FOR_XDP: [&str; 1] = ["ena"];

/// Drivers that need a free queue for each possible processor, beside those that receive, when a program is attached. With
/// fewer they take none, and what a program sends shares the others' by locks, which is slower.
const ONE_FOR_EACH_PROCESSOR: [&str; 1] = ["virtio_net"];

/// How many of the queues that a device has native XDP leaves for receiving.
pub fn queues_with_xdp(driver: &str, all: u32) -> u32 {
    left_with_xdp(driver, all, possible_cpus())
}

/// Whether what a program sends waits for locks, however few of all the device's queues receive.
pub fn xdp_sends_by_lock(driver: &str, all: u32) -> bool {
    ONE_FOR_EACH_PROCESSOR.contains(&driver) && all <= possible_cpus()
}

fn left_with_xdp(driver: &str, all: u32, cpus: u32) -> u32 {
    match driver {
        _ if HALF_FOR_XDP.contains(&driver) => all.div_ceil(2),
        // Where there are too few in any case, to leave some idle is of no use.
        _ if ONE_FOR_EACH_PROCESSOR.contains(&driver) && all > cpus => all - cpus,
        _ => all,
    }
}

/// As the driver counts them: those that may be plugged in later too.
fn possible_cpus() -> u32 {
    libbpf_rs::num_possible_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1)
}

/// What is known of a driver; `None` for one that is not in the table.
pub fn driver_xdp(driver: &str) -> Option<DriverXdp> {
    DRIVERS.iter().find(|(name, _)| *name == driver).map(|(_, known)| *known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_drivers_need_queues_for_what_a_program_sends() {
        assert_eq!(left_with_xdp("ena", 8, 4), 4);
        assert_eq!(left_with_xdp("virtio_net", 8, 4), 4);
        assert_eq!(left_with_xdp("virtio_net", 5, 4), 1);
        assert_eq!(left_with_xdp("virtio_net", 4, 4), 4, "it cannot have one for each processor anyway");
        assert_eq!(left_with_xdp("ice", 8, 4), 8);
        assert!(xdp_sends_by_lock("virtio_net", 1) && !xdp_sends_by_lock("virtio_net", u32::MAX));
        assert!(!xdp_sends_by_lock("ice", 1));
    }
}
