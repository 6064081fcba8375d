//! Where figures come from: from the process of an instance, or from what it pinned where no process is.

use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

use super::Instance;
use crate::control::{Ask, Client, ClientError, Filter};
use crate::dataplane::{Clock, Entries, LifeState, Tables, Which};
use crate::metrics::{Connections, Snapshot};
use crate::model::Protocol;

/// Where figures come from.
pub(super) enum Source {
    Process(Client),
    Pins(Box<Pins>),
}

impl Source {
    /// The process, if one listens; else the pinned tables, which is said.
    pub fn open(instance: &Instance) -> Result<Source> {
        let source = Source::find(instance)?;
        if let Source::Pins(_) = source {
            let (socket, pin_dir) = (instance.socket.display(), instance.pin_dir.display());
            crate::log::notice(&format!(
                "no process listens at {socket}: this is read from the tables that are pinned in {pin_dir}"
            ));
        }
        Ok(source)
    }

    /// The process, if one listens; else the pinned tables.
    pub fn find(instance: &Instance) -> Result<Source> {
        match Client::connect(&instance.socket) {
            Ok(client) => return Ok(Source::Process(client)),
            Err(ClientError::NoInstance(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let (socket, pin_dir) = (instance.socket.display(), instance.pin_dir.display());
        let tables = Tables::open(&instance.pin_dir).with_context(|| {
            format!(
                "no instance listens at {socket} or has its pins in {pin_dir}: is one running? (--socket and --pin-dir \
                 name another)"
            )
        })?;
        Ok(Source::Pins(Box::new(Pins { tables, clock: Clock::load()? })))
    }

    /// Whether nothing better can be found by now: what is pinned is read only while no process listens, and as long as it
    /// is pinned.
    pub fn is_best(&self, instance: &Instance) -> bool {
        match self {
            Source::Process(_) => true,
            Source::Pins(_) => has_pins(&instance.pin_dir) && Client::connect(&instance.socket).is_err(),
        }
    }

    /// Every figure, with `running` in it.
    pub fn status(&self) -> Result<Value> {
        let (mut status, running) = match self {
            Source::Process(client) => (client.status()?, true),
            Source::Pins(pins) => (pins.status()?, false),
        };
        if let Some(object) = status.as_object_mut() {
            object.entry("running").or_insert(json!(running));
        }
        Ok(status)
    }

    pub fn connections(&self, filter: &Filter) -> Result<Value> {
        match self {
            Source::Process(client) => Ok(client.ask(&Ask::Connections(filter.clone()))?),
            Source::Pins(pins) => pins.connections(filter),
        }
    }
}

/// Tables that an instance pinned.
pub(super) struct Pins {
    tables: Tables,
    clock: Clock,
}

impl Pins {
    fn status(&self) -> Result<Value> {
        let settings = self.tables.settings()?;
        let now = self.clock.now(settings.clock_shift)?;
        let census = self.tables.sweeper(settings, now).count();
        let snapshot = Snapshot::take(&self.tables, &census)?;
        serde_json::to_value(snapshot).context("could not write the figures as JSON")
    }

    fn connections(&self, filter: &Filter) -> Result<Value> {
        let settings = self.tables.settings()?;
        let now = self.clock.now(settings.clock_shift)?;
        let which = Which {
            services: filter.service.as_deref().map(|word| self.services(word)).transpose()?,
            backend: filter.backend,
            client: filter.client,
            state: filter.state.as_deref().and_then(LifeState::from_name),
            limit: filter.limit,
        };
        let listing = Entries::new(&self.tables, settings, now).list(&which);
        // Names are not pinned.
        let connections = Connections::of(&listing, |vip, _| vip.to_string());
        serde_json::to_value(connections).context("could not write the connections as JSON")
    }

    /// The services that a word means, by their VIPs.
    fn services(&self, word: &str) -> Result<Vec<(SocketAddrV4, Protocol)>> {
        let snapshot = Snapshot::take(&self.tables, &Default::default())?;
        let all = snapshot
            .services
            .iter()
            .filter_map(|service| Some((service.vip, Protocol::from_name(&service.protocol)?)));
        let meant: Vec<_> = all
            .filter(|(vip, protocol)| crate::model::means_service(word, &vip.to_string(), *vip, *protocol))
            .collect();
        if meant.is_empty() {
            return Err(no_service(word));
        }
        Ok(meant)
    }
}

/// Without its process an instance's services have no names but their VIPs.
pub(super) fn no_service(word: &str) -> anyhow::Error {
    anyhow!("there is no service {word:?}; xdp-lb service list shows which there are")
}

/// What there is no answer to without a process.
pub(super) fn process(instance: &Instance) -> Result<Client> {
    match Client::connect(&instance.socket) {
        Ok(client) => Ok(client),
        Err(error @ ClientError::NoInstance(_)) if has_pins(&instance.pin_dir) => {
            bail!("{error}; what is pinned in {} goes on without a process", instance.pin_dir.display())
        }
        Err(error) => Err(error.into()),
    }
}

fn has_pins(pin_dir: &Path) -> bool {
    pin_dir.join("settings").exists()
}
