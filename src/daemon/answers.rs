//! What is asked at the admin socket, and the answers.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{json, to_value};

use super::change::How;
use super::running::Running;
use crate::config::edit::{self, Edit, EditError};
use crate::config::{self, Config};
use crate::control::{Answer, Ask, BackendChange, Done, Filter, Refusal};
use crate::dataplane::{BackendId, Clock, Entries, LifeState, Which};
use crate::metrics::{Connections, Snapshot};
use crate::model::{Backend, Service};

/// Who wants a change that was asked for at the socket.
const ADMIN: &str = "admin socket";

impl Running {
    /// Answers a question. `false`: the process is to end then.
    pub fn answer(&mut self, ask: Ask) -> (Result<Answer, Refusal>, bool) {
        if ask == Ask::Stop {
            let step = match self.config.persist {
                true => "the process ends; programs, tables and addresses stay and go on (persist)",
                false => "the process ends, and takes everything back",
            };
            return (Ok(json!(Done { steps: vec![step.into()], applied: true, ..Done::default() })), false);
        }
        (self.answer_and_go_on(ask), true)
    }

    fn answer_and_go_on(&mut self, ask: Ask) -> Result<Answer, Refusal> {
        match ask {
            Ask::Status => self.status(),
            Ask::Config => Ok(json!({ "toml": config::render(&self.config) })),
            Ask::Reload(reload) => {
                self.reload(How { by: ADMIN, dry_run: reload.dry_run, now: reload.now }).map(done)
            }
            Ask::AddServices { services, persist } => {
                let added = services.clone();
                let change = move |config: &mut Config| {
                    added.iter().try_for_each(|service| is_free(config, service))?;
                    config.services.extend(added.iter().cloned());
                    Ok(())
                };
                self.change_and_persist(change, persist, Edit::AddService(services)).map(done)
            }
            Ask::RemoveService { service, persist } => {
                self.named(&service)?;
                let word = service.clone();
                let change = move |config: &mut Config| {
                    config.services.retain(|one| !one.is_called(&word));
                    Ok(())
                };
                self.change_and_persist(change, persist, Edit::RemoveService(service)).map(done)
            }
            Ask::ChangeBackend { service, address, change, persist } => {
                self.change_backend(&service, address, change, persist).map(done)
            }
            Ask::Connections(filter) => self.connections(&filter),
            Ask::Kill(filter) => self.kill(&filter),
            Ask::Stop => Err(Refusal::invalid("it ends already")),
        }
    }

    /// The name of the service that a word means.
    fn named(&self, word: &str) -> Result<String, Refusal> {
        let found = self.config.services.iter().find(|service| service.is_called(word));
        found.map(|service| service.name.clone()).ok_or_else(|| {
            let names: Vec<&str> = self.config.services.iter().map(|service| service.name.as_str()).collect();
            Refusal::not_found(format!("there is no service {word}; there are: {}", shortened(&names)))
        })
    }

    fn change_backend(
        &mut self,
        service: &str,
        address: SocketAddrV4,
        change: BackendChange,
        persist: bool,
    ) -> Result<Done, Refusal> {
        let name = self.named(service)?;
        let word = service.to_owned();
        let apply = move |config: &mut Config| {
            let mut services = config.services.iter_mut().filter(|service| service.is_called(&word));
            services.try_for_each(|service| change_one(service, address, change))
        };
        let rows = self.rows(service, address);
        let service = service.to_owned();
        let edit = match change {
            BackendChange::Add(weight, state) => {
                Edit::AddBackend { service, backend: Backend { address, weight, state } }
            }
            BackendChange::Remove { .. } => Edit::RemoveBackend { service, address },
            BackendChange::State { state, .. } => Edit::State { service, address, state },
            BackendChange::Weight(weight) => Edit::Weight { service, address, weight },
        };
        let mut done = self.change_and_persist(apply, persist, edit)?;
        const RESET: &str = "its live TCP connections are reset";
        let reset = match change {
            BackendChange::Remove { now: true } | BackendChange::State { now: true, .. } => {
                self.pool.keep(&rows);
                rows.iter().for_each(|row| self.plane.reset_connections(row.index));
                Some(RESET.to_owned())
            }
            BackendChange::State { deadline: Some(deadline), .. } => {
                self.pool.reset_after(&name, &rows, deadline);
                Some(format!("{RESET} after {}", humantime::format_duration(deadline)))
            }
            BackendChange::State { .. } if self.pool.keep(&rows) => {
                done.steps.push(format!("service {name}: backend {address}: there is no deadline any more"));
                None
            }
            _ => None,
        };
        if let Some(reset) = reset {
            let silent = match rows.iter().any(|row| self.plane.has_other(row.index)) {
                true => "",
                false => ", but nobody tells their clients: no other backend takes connections",
            };
            let step = format!("service {name}: backend {address}: {reset}{silent}");
            tracing::info!(by = ADMIN, "{step}");
            done.steps.push(step);
        }
        Ok(done)
    }

    /// The rows of a backend of what a word means; two where that is a service of TCP and UDP.
    fn rows(&self, word: &str, address: SocketAddrV4) -> Vec<BackendId> {
        let services = self.config.services.iter().filter(|one| one.is_called(word));
        services.filter_map(|one| self.plane.find(one.vip, one.protocol, address)).collect()
    }

    /// Carries out a change, and writes it to the file too if that is asked for. What could not be written there is known
    /// before anything is changed, but for a disk that is full.
    fn change_and_persist(
        &mut self,
        change: impl Fn(&mut Config) -> Result<(), Refusal>,
        persist: bool,
        edit: Edit,
    ) -> Result<Done, Refusal> {
        let mut new = self.config.clone();
        change(&mut new)?;
        let file = if persist { Some(self.edited(&[edit])?) } else { None };
        let done = self.change(new, How::by(ADMIN))?;
        let Some((path, before, text, config)) = file else { return Ok(done) };
        edit::write(&path, &before, &text).map_err(|error| Refusal {
            error: format!("it is done, but could not be written to {}: {error}", path.display()),
            ..refused(error)
        })?;
        if let Some(source) = &mut self.source {
            // Only this is known of the file: what somebody else changed in it is still to be read.
            let mut known = source.config.clone();
            if change(&mut known).is_ok() {
                source.config = known;
            }
            if source.config == config {
                source.is(config);
            }
        }
        Ok(Done { persisted: Some(path), ..done })
    }

    /// The file with a change: its path, what it says, what it is to say, and what that means.
    fn edited(&self, edits: &[Edit]) -> Result<(PathBuf, String, String, Config), Refusal> {
        let Some(source) = &self.source else {
            return Err(Refusal::invalid("this instance has no configuration file to write to"));
        };
        let path = source.path.clone();
        let failed = |error: anyhow::Error| Refusal::failed(&error);
        let before = std::fs::read_to_string(&path)
            .with_context(|| format!("could not read {}", path.display()))
            .map_err(failed)?;
        let text = edit::apply(&before, &path, edits).map_err(refused)?;
        let config = config::parse(&text, &path).map_err(|error| Refusal::invalid(error.to_string()))?;
        Ok((path, before, text, config))
    }

    fn status(&mut self) -> Result<Answer, Refusal> {
        let failed = |error: anyhow::Error| Refusal::failed(&error);
        let tables = self.plane.tables();
        let settings = *self.plane.settings();
        let now = Clock::load().and_then(|clock| clock.now(settings.clock_shift)).map_err(failed)?;
        let census = tables.sweeper(settings, now).count();
        let mut snapshot = Snapshot::take(tables, &census).map_err(failed)?;
        snapshot.name(&self.config.services);
        snapshot.add_health(&self.health());
        let mut answer = to_value(snapshot).context("could not write the figures").map_err(failed)?;
        answer["running"] = json!(true);
        answer["version"] = json!(env!("CARGO_PKG_VERSION"));
        answer["config"] = json!(self.source.as_ref().map(|source| &source.path));
        Ok(answer)
    }

    fn connections(&self, filter: &Filter) -> Result<Answer, Refusal> {
        // Nothing else is done while they are listed.
        const MOST: usize = 100_000;
        let (mut which, entries) = (self.which(filter)?, self.entries()?);
        which.limit = Some(which.limit.map_or(MOST, |limit| limit.min(MOST)));
        let name = |vip, protocol| {
            let same = |service: &&Service| (service.vip, service.protocol) == (vip, protocol);
            self.config
                .services
                .iter()
                .find(same)
                .map_or_else(|| vip.to_string(), |service| service.name.clone())
        };
        Ok(json!(Connections::of(&entries.list(&which), name)))
    }

    fn kill(&self, filter: &Filter) -> Result<Answer, Refusal> {
        if filter.is_empty() {
            return Err(Refusal::invalid("name the connections: by service, backend, client or state"));
        }
        let (which, entries) = (self.which(filter)?, self.entries()?);
        let ended = entries.end(&which).map_err(|error| Refusal::failed(&error))?;
        Ok(json!(Done { applied: true, ended: Some(ended), ..Done::default() }))
    }

    fn entries(&self) -> Result<Entries<'_>, Refusal> {
        let settings = *self.plane.settings();
        let now = Clock::load().and_then(|clock| clock.now(settings.clock_shift));
        let now = now.map_err(|error| Refusal::failed(&error))?;
        Ok(Entries::new(self.plane.tables(), settings, now))
    }

    fn which(&self, filter: &Filter) -> Result<Which, Refusal> {
        let services = match &filter.service {
            None => None,
            Some(word) => {
                self.named(word)?;
                let named = self.config.services.iter().filter(|service| service.is_called(word));
                Some(named.map(|service| (service.vip, service.protocol)).collect())
            }
        };
        let state = match &filter.state {
            None => None,
            Some(word) => Some(LifeState::from_name(word).ok_or_else(|| {
                Refusal::invalid(format!(
                    "{word:?} is no state of a connection: unconfirmed, established or closing"
                ))
            })?),
        };
        let Filter { backend, client, limit, .. } = filter;
        Ok(Which { services, state, backend: *backend, client: *client, limit: *limit })
    }
}

/// Why the file was not changed.
fn refused(error: EditError) -> Refusal {
    let text = error.to_string();
    match error {
        EditError::NotFound(_) => Refusal::not_found(text),
        EditError::Conflict(_) => Refusal::conflict(text),
        EditError::File(_) => Refusal::invalid(text),
        EditError::Failed(_) => Refusal::failed(&anyhow::anyhow!(text)),
    }
}

fn done(done: Done) -> Answer {
    json!(done)
}

/// Whether a service clashes with none that is there.
fn is_free(config: &Config, new: &Service) -> Result<(), Refusal> {
    for service in &config.services {
        if (service.vip, service.protocol) == (new.vip, new.protocol) {
            return Err(Refusal::conflict(format!(
                "{}/{} is the service {} already: remove that one first, or change it",
                new.vip, new.protocol, service.name
            )));
        }
        if service.name == new.name && (service.vip != new.vip || service.protocol == new.protocol) {
            return Err(Refusal::conflict(format!(
                "there is a service {} already: use another name",
                new.name
            )));
        }
    }
    Ok(())
}

fn change_one(service: &mut Service, address: SocketAddrV4, change: BackendChange) -> Result<(), Refusal> {
    let at = service.backends.iter().position(|backend| backend.address == address);
    match (change, at) {
        (BackendChange::Add(..), Some(_)) => Err(Refusal::conflict(format!(
            "{address} is a backend of the service {} already: change its weight or state",
            service.name
        ))),
        (BackendChange::Add(weight, state), None) => {
            service.backends.push(Backend { address, weight, state });
            Ok(())
        }
        (_, None) => {
            let all: Vec<String> = service.backends.iter().map(|one| one.address.to_string()).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            Err(Refusal::not_found(format!(
                "{address} is no backend of the service {}; its backends are: {}",
                service.name,
                shortened(&all)
            )))
        }
        (BackendChange::Remove { .. }, Some(at)) => {
            service.backends.remove(at);
            Ok(())
        }
        (BackendChange::State { state, .. }, Some(at)) => {
            service.backends[at].state = state;
            Ok(())
        }
        (BackendChange::Weight(weight), Some(at)) => {
            service.backends[at].weight = weight;
            Ok(())
        }
    }
}

/// A list that does not fill the screen.
fn shortened(words: &[&str]) -> String {
    const MOST: usize = 20;
    match words.len() {
        0 => "none".to_owned(),
        len if len > MOST => format!("{} and {} more", words[..MOST].join(", "), len - MOST),
        _ => words.join(", "),
    }
}
