//! What is asked, by the client and by hand, and what is refused.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use xdp_lb::control::{Ask, BackendChange, ClientError, Done, Filter, Limits, Reload};
use xdp_lb::model::{AdminState, Backend, Protocol, Scheduler, Service, Timeouts, Weight};

use super::instance::*;

fn web() -> Vec<Service> {
    let backends = vec![
        Backend::new("10.0.0.10:8080".parse().unwrap(), Weight::new(50).unwrap()),
        Backend::new("10.0.0.11:8080".parse().unwrap(), Weight::MIN),
    ];
    let service = Service::new("192.0.2.1:80".parse().unwrap(), Protocol::Tcp, backends);
    vec![Service { name: "web".into(), scheduler: Scheduler::Maglev, ..service }]
}

/// Everything that can be asked.
fn questions() -> Vec<Ask> {
    let address = "10.0.0.10:8080".parse().unwrap();
    let change = |service: &str, change, persist| Ask::ChangeBackend {
        service: service.into(),
        address,
        change,
        persist,
    };
    let drain = |now, deadline| BackendChange::State { state: AdminState::Drain, now, deadline };
    let filter = Filter {
        service: Some("192.0.2.1:80/tcp".into()),
        backend: Some(address),
        client: Some("198.51.100.7".parse().unwrap()),
        state: Some("closing".into()),
        limit: Some(5),
    };
    vec![
        Ask::Status,
        Ask::Config,
        Ask::Reload(Reload { dry_run: true, now: false }),
        Ask::Reload(Reload { dry_run: false, now: true }),
        Ask::AddServices { services: web(), persist: false },
        Ask::AddServices { services: web(), persist: true },
        Ask::RemoveService { service: "web".into(), persist: true },
        Ask::RemoveService { service: "192.0.2.1:80/tcp ü?&=#%".into(), persist: false },
        change("web", BackendChange::Add(Weight::new(7).unwrap(), AdminState::Drain), false),
        change("192.0.2.1:80/tcp", BackendChange::Add(Weight::MIN, AdminState::Enabled), true),
        change("web", BackendChange::Remove { now: false }, true),
        change("a/b:c", BackendChange::Remove { now: true }, false),
        change("web", drain(false, None), false),
        change("web", drain(true, None), true),
        change("web", drain(false, Some(Duration::from_millis(61_500))), false),
        change("web", BackendChange::State { state: AdminState::Enabled, now: false, deadline: None }, false),
        change("web", BackendChange::Weight(Weight::MAX), true),
        Ask::Connections(filter.clone()),
        Ask::Kill(filter),
        Ask::Stop,
    ]
}

#[test]
fn what_the_client_asks_is_what_the_instance_hears() {
    let instance = start();
    let client = instance.client();
    for ask in questions() {
        let answered = client.ask(&ask).unwrap_or_else(|error| panic!("{ask:?}: {error}"));
        assert_eq!(answered, answer(&ask).unwrap(), "{ask:?}");
        assert_eq!(instance.asked(), [ask]);
    }
    let filter = Filter { limit: Some(1000), ..Filter::default() };
    client.ask(&Ask::Connections(Filter::default())).unwrap();
    assert_eq!(instance.asked(), [Ask::Connections(filter)], "an answer has an end");
}

#[test]
fn typed_calls() {
    let instance = start();
    let client = instance.client();
    assert_eq!(client.status().unwrap(), figures());
    assert_eq!(client.config().unwrap(), "interfaces = [\"eth0\"]\n");
    assert_eq!(client.services().unwrap(), json!({"services": figures()["services"]}));
    let done = client.change(&Ask::Reload(Reload::default())).unwrap();
    assert_eq!((done.steps, done.applied, done.ended), (vec!["done".to_owned()], true, None));
}

#[test]
fn a_services_backends_by_any_of_its_names() {
    let instance = start();
    let client = instance.client();
    let of = |service: &str| {
        let answer = client.backends(service).unwrap();
        let backends = answer["backends"].as_array().unwrap().clone();
        let text = |backend: &Value| {
            let word = |key: &str| backend[key].as_str().unwrap().to_owned();
            format!("{} {} {} {}", word("service"), word("vip"), word("protocol"), word("address"))
        };
        backends.iter().map(text).collect::<Vec<_>>()
    };
    let web = ["web 192.0.2.1:80 tcp 10.0.0.10:8080"];
    for name in ["web", "192.0.2.1:80", "192.0.2.1:80/tcp", "web/tcp"] {
        assert_eq!(of(name), web, "{name}");
    }
    assert_eq!(of("dns").len(), 2);
    assert_eq!(of("dns/udp"), ["dns 192.0.2.1:53 udp 10.0.0.11:53"]);
    for name in ["we", "192.0.2.1:80/udp", "192.0.2.1", ""] {
        if let Err(ClientError::Refused(refusal)) = client.backends(name) {
            assert_eq!(refusal.kind, "not_found", "{name}");
        } else {
            panic!("{name}");
        }
    }
}

#[test]
fn requests_by_hand() {
    let instance = start();
    let address = "10.0.0.10:8080".parse().unwrap();
    let web = || "web".to_owned();
    let cases = [
        ("POST /v1/reload", "", Ask::Reload(Reload::default())),
        ("POST /v1/reload", r#"{"dry-run":true}"#, Ask::Reload(Reload { dry_run: true, now: false })),
        ("DELETE /v1/services/web?persist=0", "", Ask::RemoveService { service: web(), persist: false }),
        (
            "DELETE /v1/services/10.1.1.1%3A80%2Ftcp?persist",
            "",
            Ask::RemoveService { service: "10.1.1.1:80/tcp".into(), persist: true },
        ),
        (
            "POST /v1/services/web/backends",
            r#"{"address":"10.0.0.10:8080"}"#,
            Ask::ChangeBackend {
                service: web(),
                address,
                change: BackendChange::Add(Weight::MIN, AdminState::Enabled),
                persist: false,
            },
        ),
        (
            "PATCH /v1/services/web/backends/10.0.0.10%3A8080",
            r#"{"state":"drain","deadline":"90","persist":true}"#,
            Ask::ChangeBackend {
                service: web(),
                address,
                change: BackendChange::State {
                    state: AdminState::Drain,
                    now: false,
                    deadline: Some(Duration::from_secs(90)),
                },
                persist: true,
            },
        ),
        (
            "DELETE /v1/services/web/backends/10.0.0.10:8080?now&persist=true",
            "",
            Ask::ChangeBackend {
                service: web(),
                address,
                change: BackendChange::Remove { now: true },
                persist: true,
            },
        ),
        (
            "GET /v1/connections?client=198.51.100.7&limit=2",
            "",
            Ask::Connections(Filter {
                client: Some("198.51.100.7".parse().unwrap()),
                limit: Some(2),
                ..Filter::default()
            }),
        ),
        (
            "POST /v1/connections/kill",
            r#"{"service":"web"}"#,
            Ask::Kill(Filter { service: Some(web()), ..Filter::default() }),
        ),
        ("POST /v1/stop", "anything", Ask::Stop),
    ];
    for (request, body, expected) in cases {
        let (status, text) = instance.http(request, body);
        assert_eq!(status, 200, "{request} {body}: {text}");
        assert_eq!(instance.asked(), [expected], "{request} {body}");
    }
}

#[test]
fn weight_and_state_at_once() {
    let instance = start();
    let request = "PATCH /v1/services/web/backends/10.0.0.10:8080";
    let (status, text) = instance.http(request, r#"{"weight":9,"state":"drain"}"#);
    let done: Done = serde_json::from_str(&text).unwrap();
    assert_eq!((status, done.steps), (200, vec!["weight".to_owned(), "state".to_owned()]));
    assert_eq!(instance.asked().len(), 2);
    let (status, kind, error) = instance.problem(request, r#"{"weight":9,"state":"disabled"}"#);
    assert_eq!((status, kind.as_str()), (409, "conflict"));
    assert_eq!(error, "the weight was changed, the state was not: the last one");
}

#[test]
fn the_configuration_as_text_or_json() {
    let instance = start();
    let get = |headers: &str| exchange(&instance.path(), &head("GET /v1/config", headers, 0), "");
    assert_eq!(get("Accept: text/plain\r\n"), (200, "interfaces = [\"eth0\"]\n".into()));
    for headers in ["", "Accept: application/json\r\n", "Accept: */*\r\n"] {
        let (status, text) = get(headers);
        assert_eq!((status, text.as_str()), (200, r#"{"toml":"interfaces = [\"eth0\"]\n"}"#), "{headers}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_the_instance_hears_of_it() {
    let instance = start();
    let (backends, backend) =
        ("POST /v1/services/web/backends", "PATCH /v1/services/web/backends/10.0.0.10:8080");
    let cases = [
        ("POST /v1/reload", r#"{"dryrun":true}"#, "unknown field `dryrun`"),
        ("POST /v1/reload", "{", "not the JSON that is needed"),
        ("POST /v1/reload", r#"{"now":1}"#, "not the JSON that is needed"),
        ("POST /v1/services", "", "[[service]]"),
        ("POST /v1/services", "nonsense", ""),
        ("POST /v1/services?force", "", "there is no \"force\" in this query; persist"),
        ("DELETE /v1/services/web?persist=maybe", "", "write true or false"),
        ("DELETE /v1/services/web?now", "", "there is no \"now\""),
        (backends, "{}", "missing field `address`"),
        (backends, r#"{"address":"web:80"}"#, "not the JSON"),
        (backends, r#"{"address":"10.0.0.1:80","weight":0}"#, "the weight 0 is outside 1 to 100"),
        (backends, r#"{"address":"10.0.0.1:80","weight":101}"#, "the weight 101 is outside"),
        (backends, r#"{"address":"10.0.0.1:80","state":"up"}"#, "write enabled, drain or disabled"),
        (backends, r#"{"address":"10.0.0.1:80","port":1}"#, "unknown field `port`"),
        (backend, "{}", "nothing is to be changed"),
        (backend, r#"{"now":true}"#, "go with a state"),
        (backend, r#"{"weight":300}"#, "not the JSON"),
        (backend, r#"{"state":"drain","deadline":"soon"}"#, "write 60s or 5m"),
        (backend, r#"{"state":"drain","deadline":"0"}"#, "write 60s or 5m"),
        (backend, r#"{"state":"drain","deadline":"+5"}"#, "write 60s or 5m"),
        (backend, r#"{"state":"drain","deadline":"5s","now":true}"#, "exclude each other"),
        (backend, r#"{"state":"enabled","now":true}"#, "keeps its connections"),
        ("PATCH /v1/services/web/backends/10.0.0.10", r#"{"weight":1}"#, "write 10.0.0.10:8080"),
        ("PATCH /v1/services/web/backends/10.0.0.10:80?now", r#"{"weight":1}"#, "it takes none"),
        ("DELETE /v1/services/web/backends/x?now", "", "write 10.0.0.10:8080"),
        ("GET /v1/connections?state=open", "", "write unconfirmed, established or closing"),
        ("GET /v1/connections?limit=all", "", "the query is wrong"),
        ("GET /v1/connections?backend=1.2.3.4", "", "the query is wrong"),
        ("GET /v1/connections?who=me", "", "unknown field `who`"),
        ("POST /v1/connections/kill", "", "the filter is empty"),
        ("POST /v1/connections/kill", r#"{"limit":5}"#, "the filter is empty"),
        ("POST /v1/connections/kill", r#"{"state":"open","service":"web"}"#, "there is no state"),
        ("POST /v1/connections/kill", r#"{"all":true}"#, "unknown field `all`"),
        ("DELETE /v1/services/%FF", "", "the path is wrong"),
    ];
    for (request, body, expected) in cases {
        let (status, kind, text) = instance.problem(request, body);
        assert_eq!((status, kind.as_str()), (400, "invalid"), "{request} {body}: {text}");
        assert!(text.contains(expected), "{request} {body}: {text}");
        assert_eq!(instance.asked(), [], "{request} {body}");
    }
}

#[test]
fn refusals_keep_their_kind() {
    let instance = start();
    for (service, status, kind, text) in [
        ("nobody", 404, "not_found", "no nobody"),
        ("twice", 409, "conflict", "twice"),
        ("odd", 400, "invalid", "odd"),
        ("broken", 500, "failed", "outer: inner"),
    ] {
        let got = instance.problem(&format!("DELETE /v1/services/{service}"), "");
        assert_eq!(got, (status, kind.to_owned(), text.to_owned()));
        let ask = Ask::RemoveService { service: service.into(), persist: false };
        match instance.client().ask(&ask) {
            Err(ClientError::Refused(refusal)) => {
                assert_eq!((refusal.kind.as_str(), refusal.error.as_str()), (kind, text));
            }
            other => panic!("{service}: {other:?}"),
        }
    }
}

#[test]
fn what_is_not_there_is_told_what_is() {
    let instance = start();
    for request in ["GET /", "GET /v2/status", "POST /v1/services/a/b/backends", "GET /v1/status/"] {
        let (status, kind, error) = instance.problem(request, "");
        assert_eq!((status, kind.as_str()), (404, "not_found"), "{request}");
        assert!(error.contains("/v1/status") && error.contains("/v1/connections/kill"), "{error}");
    }
    for request in ["POST /v1/status", "GET /v1/stop", "PUT /v1/services/web", "DELETE /v1/connections"] {
        let (status, kind, error) = instance.problem(request, "");
        assert_eq!((status, kind.as_str()), (405, "not_allowed"), "{request}");
        assert!(error.contains("cannot be done by") && error.contains("/v1/stop"), "{error}");
    }
    assert_eq!(instance.asked(), []);
}

#[test]
fn an_instance_that_is_busy_or_ending() {
    let limits = Limits { answer: Duration::from_millis(100), ..Limits::default() };
    let kept = Mutex::new(Vec::new());
    let instance = start_with(limits, move |ask, reply| match ask {
        Ask::Status => kept.lock().unwrap().push(reply),
        _ => drop(reply),
    });
    let (status, kind, error) = instance.problem("GET /v1/status", "");
    assert_eq!((status, kind.as_str()), (504, "timeout"));
    assert!(error.contains("within 100ms"), "{error}");
    let (status, kind, _) = instance.problem("GET /v1/config", "");
    assert_eq!((status, kind.as_str()), (503, "stopping"));
}

#[test]
fn bodies_have_an_end() {
    let instance = start();
    let body = |length: usize| " ".repeat(length);
    let request = "POST /v1/reload";
    assert_eq!(instance.http(request, &format!("{{}}{}", body((1 << 20) - 2))).0, 200);
    for length in [(1 << 20) + 1, 5 << 20] {
        let (status, kind, error) = instance.problem(request, &body(length));
        assert_eq!((status, kind.as_str()), (413, "invalid"));
        assert!(error.contains("more than 1048576 bytes"), "{error}");
    }
    assert_eq!(instance.http("GET /v1/status", "").0, 200, "and others are still served");
}

#[test]
fn timeouts_are_those_of_the_present_configuration() {
    let instance = start();
    let body = "[[service]]\nname = \"dns\"\nvip = \"192.0.2.1:53/any\"\nbackend = [\"10.0.0.1:53\"]\n";
    let timeouts = Timeouts { udp: Duration::from_secs(7), ..Timeouts::default() };
    instance.server.set_timeouts(timeouts);
    assert_eq!(instance.http("POST /v1/services?persist", body).0, 200);
    match &instance.asked()[..] {
        [Ask::AddServices { services, persist: true }] => {
            assert_eq!(services.len(), 2);
            assert!(services.iter().all(|service| service.name == "dns" && service.timeouts == timeouts));
        }
        other => panic!("{other:?}"),
    }
}
