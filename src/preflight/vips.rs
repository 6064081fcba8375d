use std::collections::BTreeSet;

use super::{Finding, Scene};
use crate::config::Config;

const NAME: &str = "vip";

/// `assigned`: an instance has assigned its own already.
pub(super) fn check(scene: &Scene, config: &Config, assigned: bool) -> Vec<Finding> {
    let vips: BTreeSet<_> = config.services.iter().map(|service| *service.vip.ip()).collect();
    let finding = |vip| {
        let on = scene.addresses.iter().find(|address| address.address == vip);
        match on.and_then(|address| scene.links.get(&address.ifindex)) {
            Some(link) => Finding::ok(NAME, &format!("the VIP {vip} is on {}", link.name)),
            None if config.assign_vip && assigned => Finding::warning(
                NAME,
                &format!(
                    "the VIP {vip} is no more on {}, where it was assigned: nothing answers ARP for it",
                    config.main_interface()
                ),
                &format!("ip address add {vip}/32 dev {}", config.main_interface()),
            ),
            None if config.assign_vip => Finding::ok(
                NAME,
                &format!("the VIP {vip} is added to {} while it runs", config.main_interface()),
            ),
            None => Finding::warning(
                NAME,
                &format!(
                    "the VIP {vip} is on no interface: nothing answers ARP for it, which is right only where routers send \
                     it here by a route"
                ),
                "add --assign-vip",
            ),
        }
    };
    vips.into_iter().map(finding).collect()
}
