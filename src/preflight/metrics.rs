use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use super::{Finding, Level};
use crate::config::Config;
use crate::dataplane::PinDirState;
use crate::model::{Protocol, Service};
use crate::net::listen;

const NAME: &str = "metrics";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let Some(address) = config.metrics else { return Vec::new() };
    let taken = check_services(config);
    if taken.iter().any(|finding| finding.level == Level::Error) {
        return taken;
    }
    let mut findings = taken;
    findings.extend(check_address(address, config));
    findings
}

/// Whether services take the packets of those who ask for metrics: where it can be listened does not tell.
pub(super) fn check_services(config: &Config) -> Vec<Finding> {
    let Some(address) = config.metrics else { return Vec::new() };
    let taken = taken_by(address, &config.services).map(|service| {
        let (vip, name) = (service.vip, &service.name);
        let message = format!("whoever asks for metrics at {vip} is balanced by the service {name}");
        match address.ip().is_unspecified() {
            false => {
                Finding::error(NAME, &message, "another --metrics, of an address or a port that is no VIP's")
            }
            // At other addresses they are to be had.
            true => Finding::warning(NAME, &message, "another --metrics, of a port that is no VIP's"),
        }
    });
    taken.into_iter().collect()
}

fn check_address(address: SocketAddr, config: &Config) -> Vec<Finding> {
    // The instance that runs may be the one that listens there, which is an error already.
    if matches!(PinDirState::of(&config.pin_dir), PinDirState::Running(_)) {
        return Vec::new();
    }
    vec![match listen(address, None) {
        Ok(_) => Finding::ok(NAME, &format!("{address} is free to listen at")),
        Err(error) => {
            let said = error.to_string();
            // What to do is behind the last colon.
            match said.rsplit_once(": ") {
                Some((what, fix)) => Finding::error(NAME, what, fix),
                None => Finding::error(NAME, &said, "another --metrics"),
            }
        }
    }]
}

/// The service whose packets those of the scrapes would be, or some of them.
fn taken_by(address: SocketAddr, services: &[Service]) -> Option<&Service> {
    // An IPv4 address may be written as one of IPv6, and all of IPv6 are all of IPv4 too.
    let ip = address.ip().to_canonical();
    let takes = |vip: SocketAddrV4| {
        vip.port() == address.port() && (ip.is_unspecified() || ip == IpAddr::V4(*vip.ip()))
    };
    services.iter().find(|service| service.protocol == Protocol::Tcp && takes(service.vip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(metrics: &str) -> Option<Finding> {
        let service = |protocol| Service::new("127.0.0.77:80".parse().unwrap(), protocol, Vec::new());
        let services = vec![service(Protocol::Tcp), service(Protocol::Udp)];
        let metrics = (!metrics.is_empty()).then(|| metrics.parse().unwrap());
        let config = Config { metrics, ..Config::new(vec!["eth0".into()], services) };
        check(&config).pop()
    }

    #[test]
    fn an_address_that_cannot_be_had_is_an_error() {
        assert_eq!(finding(""), None);
        // An address of this test alone: the port is not another's in the next moment.
        let taken = std::net::TcpListener::bind("127.0.0.78:0").unwrap();
        let at = taken.local_addr().unwrap().to_string();
        let error = finding(&at).unwrap();
        assert_eq!((error.level, error.name), (Level::Error, "metrics"));
        assert_eq!(error.message, format!("could not listen at {at}: Address already in use"));
        assert!(error.fix.unwrap().starts_with("stop who does (ss -ltnp"));
        drop(taken);
        assert_eq!(finding(&at).unwrap().level, Level::Ok);
        let error = finding("127.0.0.77:80").unwrap();
        assert!(error.message.ends_with("is balanced by the service 127.0.0.77:80"), "{error}");
        assert_eq!(error.level, Level::Error);
    }

    #[test]
    fn services_of_the_same_port_take_a_part_of_all_addresses() {
        let found = |metrics: &str| {
            let service = Service::new("127.0.0.77:80".parse().unwrap(), Protocol::Tcp, Vec::new());
            let metrics = Some(metrics.parse().unwrap());
            check_services(&Config { metrics, ..Config::new(vec!["eth0".into()], vec![service]) }).pop()
        };
        for all in ["0.0.0.0:80", "[::]:80"] {
            let warning = found(all).unwrap();
            assert_eq!(warning.level, Level::Warning);
            assert!(warning.message.contains("at 127.0.0.77:80 is balanced"), "{warning}");
        }
        assert_eq!(found("[::ffff:127.0.0.77]:80").unwrap().level, Level::Error);
        for free in ["0.0.0.0:81", "127.0.0.78:80", "[::1]:80"] {
            assert_eq!(found(free), None, "{free}");
        }
    }
}
