//! Changes of the file carried over into a configuration that was also changed while it runs.

use std::collections::HashMap;
use std::hash::Hash;

use super::Config;
use crate::model::{Backend, Service};

/// What is to run: `running` with all that changed from `before` to `after`, two readings of the file. What did not change
/// there stays as it runs, be it something else by now: a drained backend does not come back because another was added.
pub fn merge(before: &Config, after: &Config, running: &Config) -> Config {
    let services =
        Side { of: |config: &Config| config.services.clone(), key: |one: &Service| (one.vip, one.protocol) };
    Config { services: services.merge(before, after, running, merge_service), ..after.clone() }
}

fn merge_service(before: &Service, after: &Service, running: &Service) -> Service {
    let backends =
        Side { of: |service: &Service| service.backends.clone(), key: |one: &Backend| one.address };
    let own = |service: &Service| Service { backends: Vec::new(), ..service.clone() };
    let changed = own(before) != own(after);
    Service {
        backends: backends.merge(before, after, running, merge_backend),
        ..own(if changed { after } else { running })
    }
}

fn merge_backend(before: &Backend, after: &Backend, running: &Backend) -> Backend {
    Backend {
        weight: if before.weight == after.weight { running.weight } else { after.weight },
        state: if before.state == after.state { running.state } else { after.state },
        ..*after
    }
}

/// A list of things that have a key, and how to get at both.
struct Side<W, T, K> {
    of: fn(&W) -> Vec<T>,
    key: fn(&T) -> K,
}

impl<W, T: Clone + PartialEq, K: Eq + Hash> Side<W, T, K> {
    fn merge(&self, before: &W, after: &W, running: &W, merge: impl Fn(&T, &T, &T) -> T) -> Vec<T> {
        let by_key =
            |list: &[T]| -> HashMap<K, T> { list.iter().map(|one| ((self.key)(one), one.clone())).collect() };
        let (before, running_list, after) = ((self.of)(before), (self.of)(running), (self.of)(after));
        let (was, runs, is) = (by_key(&before), by_key(&running_list), by_key(&after));
        let stays = |one: &T| match (was.get(&(self.key)(one)), runs.get(&(self.key)(one))) {
            // Removed while it ran, and the file has nothing new to say of it.
            (Some(was), None) if was == one => None,
            (Some(was), Some(runs)) => Some(merge(was, one, runs)),
            _ => Some(one.clone()),
        };
        // Added while it ran.
        let added = running_list.iter().filter(|one| {
            let key = (self.key)(one);
            !was.contains_key(&key) && !is.contains_key(&key)
        });
        after.iter().filter_map(stays).chain(added.cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AdminState, Protocol, Scheduler, Weight};

    fn backend(address: &str, weight: u8) -> Backend {
        Backend::new(address.parse().unwrap(), Weight::new(weight).unwrap())
    }

    fn config(backends: &[Backend]) -> Config {
        let service = Service::new("192.0.2.1:80".parse().unwrap(), Protocol::Tcp, backends.to_vec());
        Config::new(vec!["eth0".into()], vec![service])
    }

    #[test]
    fn an_unchanged_file_changes_nothing() {
        let file = config(&[backend("10.0.0.1:80", 1), backend("10.0.0.2:80", 1)]);
        let mut running = config(&[backend("10.0.0.2:80", 9), backend("10.0.0.3:80", 1)]);
        running.services[0].backends[0].state = AdminState::Drain;
        running.services.push(Service::new("192.0.2.2:80".parse().unwrap(), Protocol::Udp, Vec::new()));
        assert_eq!(merge(&file, &file, &running), running);
        assert_eq!(merge(&file, &file, &file), file);
    }

    #[test]
    fn what_changed_in_the_file_wins_and_the_rest_stays() {
        let before =
            config(&[backend("10.0.0.1:80", 1), backend("10.0.0.2:80", 1), backend("10.0.0.4:80", 1)]);
        let mut after =
            config(&[backend("10.0.0.1:80", 5), backend("10.0.0.2:80", 1), backend("10.0.0.3:80", 1)]);
        after.services[0].scheduler = Scheduler::Maglev;
        let mut running = before.clone();
        running.services[0].backends[0].weight = Weight::new(7).unwrap();
        running.services[0].backends[1].state = AdminState::Drain;
        let mut expected = after.clone();
        expected.services[0].backends[1].state = AdminState::Drain;
        assert_eq!(merge(&before, &after, &running), expected);
    }

    #[test]
    fn what_was_removed_by_hand_comes_back_only_when_the_file_says_something_new_of_it() {
        let before = config(&[backend("10.0.0.1:80", 1), backend("10.0.0.2:80", 1)]);
        let running = config(&[backend("10.0.0.1:80", 1)]);
        assert_eq!(merge(&before, &before, &running), running);
        let after = config(&[backend("10.0.0.1:80", 1), backend("10.0.0.2:80", 2)]);
        assert_eq!(merge(&before, &after, &running), after);
    }
}
