//! Services whose timeouts are not those of the settings: packets go by the longest, and the sweep tells them which of a
//! service's connections are over its own.

use super::mapped::Rows;
use super::types::{lb_constants, lb_phase, lb_service};

type Timeouts = [u16; 16];

/// The timeouts of each service, by phase as in the settings.
pub struct OwnTimeouts {
    /// First those of the settings.
    sets: Vec<Timeouts>,
    /// By service, which of them hold; beyond the end: the first.
    which: Vec<u16>,
}

impl OwnTimeouts {
    /// Those of the settings for all.
    pub fn none(settings: Timeouts) -> OwnTimeouts {
        OwnTimeouts { sets: vec![settings], which: Vec::new() }
    }

    /// As the rows of services have them.
    pub fn read(settings: Timeouts, services: &Rows<lb_service>) -> OwnTimeouts {
        let rows = (0..services.len()).map_while(|index| services.get(index));
        OwnTimeouts::of(settings, rows.map(|row| if row.proto == 0 { [0; 4] } else { row.timeout }))
    }

    fn of(settings: Timeouts, rows: impl Iterator<Item = [u16; 4]>) -> OwnTimeouts {
        let mut own = OwnTimeouts::none(settings);
        for row in rows {
            let set = by_phase(settings, row);
            let known = own.sets.iter().position(|known| *known == set);
            own.which.push(known.unwrap_or(own.sets.len()) as u16);
            if known.is_none() {
                own.sets.push(set);
            }
        }
        own
    }

    /// Those that hold for connections of a service.
    pub fn of_service(&self, service: u16) -> &Timeouts {
        let which = self.which.get(usize::from(service)).copied().unwrap_or(0);
        &self.sets[usize::from(which)]
    }
}

/// Established, unconfirmed, closing and UDP in their places; 0 is as in the settings.
fn by_phase(settings: Timeouts, [established, unconfirmed, closing, udp]: [u16; 4]) -> Timeouts {
    const UDP: usize = lb_constants::LB_TIMEOUT_UDP.0 as usize;
    let mut set = settings;
    let mut put = |at: usize, own: u16| set[at] = if own == 0 { settings[at] } else { own };
    for offset in [0, UDP] {
        put(lb_phase::LB_PHASE_UNCONFIRMED.0 as usize + offset, unconfirmed);
        put(lb_phase::LB_PHASE_ANSWERED.0 as usize + offset, unconfirmed);
        put(lb_phase::LB_PHASE_CLOSING.0 as usize + offset, closing);
        put(lb_phase::LB_PHASE_REVIVING.0 as usize + offset, closing);
    }
    put(lb_phase::LB_PHASE_ESTABLISHED.0 as usize, established);
    put(lb_phase::LB_PHASE_ESTABLISHED.0 as usize + UDP, udp);
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_own_or_those_of_the_settings() {
        let settings: Timeouts = std::array::from_fn(|at| 100 + at as u16);
        let own = OwnTimeouts::of(settings, [[0; 4], [7, 8, 9, 10], [0, 0, 9, 0], [7, 8, 9, 10]].into_iter());
        assert_eq!((own.of_service(0), own.of_service(9)), (&settings, &settings));
        let [established, udp] = [3, 11];
        assert_eq!((own.of_service(1)[established], own.of_service(1)[udp]), (7, 10));
        assert_eq!((own.of_service(2)[established], own.of_service(2)[4]), (103, 9));
        assert_eq!(own.of_service(1), own.of_service(3));
        assert_eq!(own.sets.len(), 3);
    }
}
