//! Where figures come from: from the process of an instance, or from what it pinned where no process is.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

use super::find::usual_pins;
use super::{Instance, Named};
use crate::config::default_socket;
use crate::control::{Ask, Client, ClientError, Filter, Halt};
use crate::dataplane::{Clock, Entries, LifeState, PinDirState, Tables, Which};
use crate::metrics::{Connections, Snapshot};
use crate::model::Protocol;

/// A process that is well answers within this, whatever it is doing.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// Where figures come from.
pub(super) enum Source {
    Process(Client, Fallback),
    Pins(Box<Pins>),
}

/// What is read where the process listens and does not answer.
pub(super) struct Fallback {
    /// `None`: only the process knows.
    pin_dir: Option<PathBuf>,
    /// It is still to be said.
    says: Cell<bool>,
    /// It was read when the process was last asked.
    used: Cell<bool>,
}

impl Source {
    /// The process, if one listens; else the pinned tables, which is said.
    pub fn open(instance: &Instance) -> Result<Source> {
        let source = Source::find(instance)?;
        match &source {
            Source::Pins(_) => {
                let why = match holder(&instance.pin_dir) {
                    Some(process) => elsewhere(&process, instance),
                    None => format!("no process listens at {}", instance.socket.display()),
                };
                read_from(&why, &instance.pin_dir);
            }
            Source::Process(_, fallback) => fallback.says.set(true),
        }
        Ok(source)
    }

    /// The same without a word.
    pub fn find(instance: &Instance) -> Result<Source> {
        match Client::reader(&instance.socket, PATIENCE) {
            Ok(client) => {
                // Those by default may be of another instance.
                let pin_dir = match instance.named {
                    Named::Socket => usual_pins(&instance.socket),
                    Named::No | Named::Pins => Some(instance.pin_dir.clone()),
                };
                let fallback = Fallback { pin_dir, says: Cell::new(false), used: Cell::new(false) };
                return Ok(Source::Process(client, fallback));
            }
            Err(ClientError::NoInstance(_)) if has_its_pins(instance) => {}
            Err(error) => return Err(error.into()),
        }
        let pins = Pins::open(&instance.pin_dir, || {
            let (socket, pin_dir) = (instance.socket.display(), instance.pin_dir.display());
            format!(
                "no instance listens at {socket} or has its pins in {pin_dir}: is one running? (--socket and --pin-dir \
                 name another)"
            )
        })?;
        Ok(Source::Pins(Box::new(pins)))
    }

    /// Whether nothing better can be found by now: what is pinned is read only while no process listens, and as long as it
    /// is pinned.
    pub fn is_best(&self, instance: &Instance) -> bool {
        match self {
            Source::Process(..) => true,
            Source::Pins(_) => has_pins(&instance.pin_dir) && Client::knock(&instance.socket).is_err(),
        }
    }

    /// Whether a process listens, and did not answer when it was last asked.
    pub fn is_silent(&self) -> bool {
        matches!(self, Source::Process(_, fallback) if fallback.used.get())
    }

    /// Every figure, with `running` in it.
    pub fn status(&self) -> Result<Value> {
        let (mut status, running) = match self {
            Source::Process(client, fallback) => match client.status() {
                Err(error @ ClientError::Silent(..)) => (fallback.pins(&error)?.status()?, false),
                status => {
                    fallback.used.set(false);
                    (status?, true)
                }
            },
            Source::Pins(pins) => (pins.status()?, false),
        };
        if let Some(object) = status.as_object_mut() {
            object.entry("running").or_insert(json!(running));
        }
        Ok(status)
    }

    pub fn connections(&self, filter: &Filter) -> Result<Value> {
        match self {
            Source::Process(client, fallback) => match client.ask(&Ask::Connections(filter.clone())) {
                Err(error @ ClientError::Silent(..)) => fallback.pins(&error)?.connections(filter),
                connections => Ok(connections?),
            },
            Source::Pins(pins) => pins.connections(filter),
        }
    }
}

impl Fallback {
    fn pins(&self, silence: &ClientError) -> Result<Pins> {
        self.used.set(true);
        let why = match (silence, &self.pin_dir) {
            // Who it is that takes no connection only its pins know.
            (ClientError::Silent(_, Duration::ZERO), Some(pin_dir)) => {
                format!("{silence}{}", halted(pin_dir))
            }
            _ => silence.to_string(),
        };
        let Some(pin_dir) = &self.pin_dir else {
            bail!("{why} (--pin-dir names its tables, which can be read without it)")
        };
        let context = || format!("{why}, and its tables cannot be read from {}", pin_dir.display());
        let pins = Pins::open(pin_dir, context)?;
        if self.says.replace(false) {
            read_from(&why, pin_dir);
        }
        Ok(pins)
    }
}

/// Why the process that has these pins does nothing, if that can be seen, in brackets.
fn halted(pin_dir: &Path) -> String {
    let PinDirState::Running(Some(process)) = PinDirState::of(pin_dir) else { return String::new() };
    Halt::of(process).map_or(String::new(), |halt| format!(" (process {process} is {halt})"))
}

/// The process that has these pins, if there is one.
fn holder(pin_dir: &Path) -> Option<String> {
    match PinDirState::of(pin_dir) {
        PinDirState::Running(Some(process)) => Some(format!("process {process}")),
        PinDirState::Running(None) => Some("a process".to_owned()),
        _ => None,
    }
}

fn elsewhere(process: &str, instance: &Instance) -> String {
    format!(
        "no instance listens at {}: {process} has the pins in {}, but listens elsewhere: --socket names where",
        instance.socket.display(),
        instance.pin_dir.display()
    )
}

/// Says where figures come from, and why not from the process.
fn read_from(why: &str, pin_dir: &Path) {
    crate::log::notice(&format!(
        "{why}: this is read from the tables that are pinned in {}",
        pin_dir.display()
    ));
}

/// Tables that an instance pinned.
pub(super) struct Pins {
    tables: Tables,
    clock: Clock,
}

impl Pins {
    fn open(pin_dir: &Path, absent: impl FnOnce() -> String) -> Result<Pins> {
        Ok(Pins { tables: open_tables(pin_dir, absent)?, clock: Clock::load()? })
    }

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
        Err(error @ ClientError::NoInstance(_)) if has_its_pins(instance) && has_pins(&instance.pin_dir) => {
            match holder(&instance.pin_dir) {
                Some(process) => bail!("{}", elsewhere(&process, instance)),
                None => {
                    bail!(
                        "{error}; what is pinned in {} goes on without a process",
                        instance.pin_dir.display()
                    )
                }
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// The pinned tables of an instance, whether its process runs or not.
pub(super) fn pinned(instance: &Instance) -> Result<Tables> {
    let pin_dir = &instance.pin_dir;
    open_tables(pin_dir, || {
        format!(
            "no instance has its pins in {}: is one running? (--socket and --pin-dir name another)",
            pin_dir.display()
        )
    })
}

/// `absent` says what is wrong where there are none; who may not look cannot know that.
fn open_tables(pin_dir: &Path, absent: impl FnOnce() -> String) -> Result<Tables> {
    Tables::open(pin_dir).with_context(|| {
        let is_absent = pin_dir.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        match nix::unistd::geteuid().is_root() || is_absent {
            true => absent(),
            false => format!("only root may read the pins in {}", pin_dir.display()),
        }
    })
}

/// Whether its pins are known to be those of the one that listens, or listened, at its socket.
fn has_its_pins(instance: &Instance) -> bool {
    instance.named != Named::Socket || instance.socket == default_socket(&instance.pin_dir)
}

pub(super) fn has_pins(pin_dir: &Path) -> bool {
    pin_dir.join("settings").exists()
}
