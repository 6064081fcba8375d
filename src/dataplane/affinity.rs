//! Which backend each client of a sticky service is to come back to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle};

use super::batch;
use super::directory::{addr_of, ipv4_of};
use super::tables::{as_bytes, from_bytes};
use super::types::{lb_affinity, lb_affinity_key};
use crate::model::{Service, Timeouts};

/// How often sweeps are needed if nothing is sticky.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// How often the table must be swept for these services: a record must not run out while a connection of its client lives,
/// and only the sweep sees that. Nor do packets know timeouts that are shorter than another service's.
pub fn sweep_interval(services: &[Service]) -> Duration {
    const LEAST: Duration = Duration::from_secs(1);
    let sticky = services.iter().filter_map(|service| service.sticky).map(|time| time / 2);
    let first = services.first().map(|service| service.timeouts);
    let differ = services.iter().any(|service| Some(service.timeouts) != first);
    let own = services.iter().filter(|_| differ).map(|service| {
        let Timeouts { established, unconfirmed, closing, udp } = service.timeouts;
        (established.min(unconfirmed).min(closing).min(udp) / 2).max(LEAST)
    });
    sticky.chain(own).fold(SWEEP_INTERVAL, Duration::min)
}

/// A client of a service, both as the connection table's keys have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its address.
    pub address: Ipv4Addr,
    /// The service's index.
    pub service: u16,
}

impl Client {
    fn key(self) -> lb_affinity_key {
        lb_affinity_key { addr: addr_of(self.address), service: self.service, ..Default::default() }
    }
}

/// A client's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// The index of the backend that it is to come back to.
    pub backend: u16,
    /// The long clock when a connection of it was last known to live.
    pub last: u32,
}

impl From<lb_affinity> for ClientRecord {
    fn from(row: lb_affinity) -> ClientRecord {
        ClientRecord { backend: row.backend, last: row.last }
    }
}

/// The records of one instance.
#[derive(Clone, Copy)]
pub struct Affinity<'a>(pub(super) &'a MapHandle);

impl Affinity<'_> {
    const FIRST_BATCH: usize = 4096;

    /// Every record.
    pub fn records(self) -> Result<HashMap<Client, ClientRecord>> {
        let mut records = HashMap::new();
        self.each(|client, record| _ = records.insert(client, record))?;
        Ok(records)
    }

    fn each(self, mut each: impl FnMut(Client, ClientRecord)) -> Result<()> {
        const KEY: usize = size_of::<lb_affinity_key>();
        const VALUE: usize = size_of::<lb_affinity>();
        let mut room = Self::FIRST_BATCH;
        let (mut keys, mut values) = (vec![0; room * KEY], vec![0; room * VALUE]);
        let mut from = None;
        loop {
            let (count, next) = match batch::read(self.0, from, &mut keys, &mut values) {
                // One bucket of the hash holds more than fits.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(room * KEY, 0);
                    values.resize(room * VALUE, 0);
                    continue;
                }
                next => next.context("could not read the table affinity")?,
            };
            for (key, value) in keys.chunks_exact(KEY).zip(values.chunks_exact(VALUE)).take(count) {
                let key: lb_affinity_key = from_bytes(key)?;
                let client = Client { address: ipv4_of(key.addr), service: key.service };
                each(client, ClientRecord::from(from_bytes::<lb_affinity>(value)?));
            }
            match next {
                Some(_) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Notes that a connection of the client lived at `now`, unless its record is not any more as it was seen: then packets
    /// have written it since, and know better which backend it names.
    fn refresh(self, client: Client, seen: ClientRecord, now: u32) -> Result<()> {
        if self.record(client)? != Some(seen) {
            return Ok(());
        }
        let value = lb_affinity { backend: seen.backend, last: now, ..Default::default() };
        match self.0.update(as_bytes(&client.key()), as_bytes(&value), MapFlags::EXIST) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done.context("could not write the table affinity"),
        }
    }

    /// A client's record.
    pub fn record(self, client: Client) -> Result<Option<ClientRecord>> {
        let value = self.0.lookup(as_bytes(&client.key()), MapFlags::ANY);
        let value = value.context("could not read the table affinity")?;
        value.map(|value| Ok(ClientRecord::from(from_bytes::<lb_affinity>(&value)?))).transpose()
    }

    /// Removes the records that name one of these backends, before their indices are used for others. Returns how many there
    /// were.
    pub fn forget_backends(self, backends: &BTreeSet<u16>) -> Result<usize> {
        if backends.is_empty() {
            return Ok(0);
        }
        let mut clients = HashSet::new();
        self.each(|client, record| {
            if backends.contains(&record.backend) {
                clients.insert(client);
            }
        })?;
        let mut removed = 0;
        for client in clients {
            match self.0.delete(as_bytes(&client.key())) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => {
                    done.context("could not remove from the table affinity")?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// The records that a sweep is to refresh if it meets a live confirmed connection of their clients.
pub struct Aging<'a> {
    affinity: Affinity<'a>,
    now: u32,
    old: HashMap<Client, ClientRecord>,
    alive: Vec<(Client, ClientRecord)>,
    lost: Option<anyhow::Error>,
}

impl<'a> Aging<'a> {
    /// Reads the records that are older than a quarter of their service's time, `sticky` (by service index, in units of the
    /// clock): sweeps come at least every half of it. `now` is the long clock. An error is told at the end: the sweep has
    /// other work, too.
    pub fn read(affinity: Affinity<'a>, now: u32, sticky: impl Fn(u16) -> u32) -> Aging<'a> {
        let mut old = HashMap::new();
        let read = affinity.each(|client, record| {
            let age = now.wrapping_sub(record.last) as i32;
            if age > 0 && age as u32 >= sticky(client.service) / 4 {
                old.insert(client, record);
            }
        });
        Aging { affinity, now, old, alive: Vec::new(), lost: read.err() }
    }

    /// A live confirmed connection of this client. A record that has run out while it lived is refreshed too: sweeps
    /// may have been missing.
    pub fn lives(&mut self, client: Client) {
        if let Some(record) = self.old.remove(&client) {
            self.alive.push((client, record));
        }
    }

    /// Refreshes the records of those that live. After the walk, which should be short.
    pub fn finish(self) -> Result<()> {
        self.lost.map_or(Ok(()), Err)?;
        let refresh = |(client, seen)| self.affinity.refresh(client, seen, self.now);
        self.alive.into_iter().try_for_each(refresh)
    }
}

#[cfg(test)]
mod tests {
    use libbpf_rs::MapType;

    use super::*;
    use crate::model::Protocol;

    #[test]
    fn short_sticky_times_need_frequent_sweeps() {
        let service = |sticky| Service {
            sticky,
            ..Service::new("192.168.1.100:80".parse().unwrap(), Protocol::Tcp, Vec::new())
        };
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!(sweep_interval(&[]), Duration::from_secs(10));
        assert_eq!(sweep_interval(&[service(None), service(seconds(60))]), Duration::from_secs(10));
        assert_eq!(
            sweep_interval(&[service(seconds(60)), service(seconds(3)), service(None)]),
            Duration::from_millis(1500)
        );
    }

    fn client(n: u8) -> Client {
        Client { address: Ipv4Addr::new(192, 0, 2, n), service: 1 }
    }

    fn table(records: &[(Client, ClientRecord)]) -> MapHandle {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let sizes = [size_of::<lb_affinity_key>() as u32, size_of::<lb_affinity>() as u32];
        let map = MapHandle::create(MapType::LruHash, Some("affinity"), sizes[0], sizes[1], 16384, &options);
        let map = map.unwrap();
        records.iter().for_each(|(client, record)| write(&map, *client, *record));
        map
    }

    /// As a packet does.
    fn write(map: &MapHandle, client: Client, record: ClientRecord) {
        let value = lb_affinity { backend: record.backend, last: record.last, ..Default::default() };
        map.update(as_bytes(&client.key()), as_bytes(&value), MapFlags::ANY).unwrap();
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_every_record_is_read_in_batches() {
        let all: Vec<(Client, ClientRecord)> = (0..10_000)
            .map(|n| {
                let address = Ipv4Addr::from(0x0a00_0000 + n);
                (Client { address, service: n as u16 % 5 }, ClientRecord { backend: n as u16, last: n })
            })
            .collect();
        let map = table(&all);
        assert_eq!(Affinity(&map).records().unwrap(), all.iter().copied().collect());
        assert_eq!(Affinity(&map).forget_backends(&BTreeSet::new()).unwrap(), 0);
        assert_eq!(Affinity(&map).forget_backends(&BTreeSet::from([77, 78, 10_000])).unwrap(), 2);
        assert_eq!(Affinity(&map).records().unwrap().len(), all.len() - 2);
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_old_records_of_the_living_are_refreshed_unless_packets_wrote_them() {
        let record = |last| ClientRecord { backend: 1, last };
        let map = table(&[
            (client(1), record(100)),
            (client(2), record(90)),
            (client(3), record(100)),
            (client(4), record(100)),
            (client(5), record(119)),
            (client(6), record(101)),
        ]);
        let mut aging = Aging::read(Affinity(&map), 120, |_| 80);
        // Meanwhile one is written anew, one is dropped.
        write(&map, client(3), ClientRecord { backend: 2, last: 119 });
        map.delete(as_bytes(&client(4).key())).unwrap();
        [1, 2, 2, 3, 4, 5, 7].into_iter().for_each(|n| aging.lives(client(n)));
        aging.finish().unwrap();
        let expected = [
            (client(1), record(120)),
            (client(2), record(120)),
            (client(3), ClientRecord { backend: 2, last: 119 }),
            (client(5), record(119)),
            (client(6), record(101)),
        ];
        assert_eq!(Affinity(&map).records().unwrap(), expected.into_iter().collect());
    }
}
