use std::net::SocketAddr;

use super::Finding;
use crate::config::Config;
use crate::dataplane::PinDirState;
use crate::model::{Protocol, Service};
use crate::net::listen;

const NAME: &str = "metrics";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let Some(address) = config.metrics else { return Vec::new() };
    if let Some(service) = taken_by(address, &config.services) {
        let message =
            format!("whoever asks for metrics at {address} is balanced by the service {}", service.name);
        return vec![Finding::error(
            NAME,
            &message,
            "another --metrics, of an address or a port that is no VIP's",
        )];
    }
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

/// The service whose packets those of the scrapes would be.
fn taken_by(address: SocketAddr, services: &[Service]) -> Option<&Service> {
    services
        .iter()
        .find(|service| service.protocol == Protocol::Tcp && SocketAddr::V4(service.vip) == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

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
    }
}
