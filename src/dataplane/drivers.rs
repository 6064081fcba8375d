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

/// How many of the queues that a device has native XDP leaves for receiving.
pub fn queues_with_xdp(driver: &str, all: u32) -> u32 {
    if HALF_FOR_XDP.contains(&driver) { all.div_ceil(2) } else { all }
}

/// What is known of a driver; `None` for one that is not in the table.
pub fn driver_xdp(driver: &str) -> Option<DriverXdp> {
    DRIVERS.iter().find(|(name, _)| *name == driver).map(|(_, known)| *known)
}
