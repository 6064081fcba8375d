//! What the main loop tells whoever serves metrics, so that nobody has to ask it.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::dataplane::Tables;
use crate::model::{Protocol, Service};

/// How long a turn of the main loop may take.
const LONGEST_TURN: Duration = Duration::from_secs(15);

/// What services are called.
pub type Names = HashMap<(SocketAddrV4, Protocol), String>;

/// What was told last.
pub struct Board {
    told: Mutex<Arc<Told>>,
    began: Instant,
    /// When the main loop last came round, in milliseconds since it began.
    turned: AtomicU64,
    attached: AtomicBool,
}

/// Where the figures are, and what their services are called.
pub struct Told {
    /// The tables that packets use.
    pub tables: Arc<Tables>,
    /// Of the services that are configured.
    pub names: Names,
}

/// The names of these services.
pub fn names_of(services: &[Service]) -> Names {
    let name = |service: &Service| ((service.vip, service.protocol), service.name.clone());
    services.iter().map(name).collect()
}

impl Board {
    /// The process has begun.
    pub fn new(tables: Arc<Tables>, names: Names) -> Board {
        Board {
            told: Mutex::new(Arc::new(Told { tables, names })),
            began: Instant::now(),
            turned: AtomicU64::new(0),
            attached: AtomicBool::new(false),
        }
    }

    /// From now on these are the tables and the names.
    pub fn tell(&self, tables: Arc<Tables>, names: Names) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Told { tables, names });
    }

    /// Before a change: services that are about to be there have their names from their first moment on.
    pub fn announce(&self, names: Names) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = told.tables.clone();
        let names = names.into_iter().chain(told.names.clone()).collect();
        *told = Arc::new(Told { tables, names });
    }

    /// What was told last.
    pub fn told(&self) -> Arc<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The main loop has come round, and the program is attached somewhere or not.
    pub fn turned(&self, attached: bool) {
        self.turned.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.attached.store(attached, Ordering::Relaxed);
    }

    /// Why the main loop is not well, if so.
    pub fn illness(&self) -> Option<String> {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        illness_after(self.began.elapsed().saturating_sub(turned))
    }

    /// Why clients are not served, if so.
    pub fn obstacle(&self) -> Option<String> {
        if !self.attached.load(Ordering::Relaxed) {
            return Some("the program is attached to no interface".into());
        }
        let told = self.told();
        let lacking = lacking(&told);
        let shown: Vec<&str> = lacking.iter().take(20).map(String::as_str).collect();
        let more = match lacking.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!lacking.is_empty())
            .then(|| format!("no backend takes new connections of the services {}{more}", shown.join(", ")))
    }
}

fn illness_after(since: Duration) -> Option<String> {
    (since >= LONGEST_TURN).then(|| format!("the main loop has not come round for {} s", since.as_secs()))
}

/// The names of services none of whose backends takes new connections.
fn lacking(told: &Told) -> Vec<String> {
    let services = super::snapshot::takers(&told.tables).into_iter().filter(|(_, _, takers)| *takers == 0);
    let name = |(vip, protocol, _)| {
        let name = told.names.get(&(vip, protocol)).cloned().unwrap_or_else(|| vip.to_string());
        format!("{name}/{protocol}")
    };
    services.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_loop_that_hangs_is_ill() {
        assert_eq!(illness_after(Duration::from_millis(14_999)), None);
        let said = illness_after(Duration::from_millis(15_500));
        assert_eq!(said.as_deref(), Some("the main loop has not come round for 15 s"));
    }
}
