//! Parts of the figures.

use serde_json::json;

use super::api::Answer;
use crate::model::Protocol;

/// The services of all figures.
pub fn services_of(status: &Answer) -> Answer {
    json!({ "services": status.get("services").unwrap_or(&json!([])) })
}

/// The backends of all figures: those of a service, or every one. `None` where there is no such service.
pub fn backends_of(status: &Answer, service: Option<&str>) -> Option<Answer> {
    let all = status.get("services").and_then(Answer::as_array);
    let is_meant = |figures: &&Answer| service.is_none_or(|word| is_meant(word, figures));
    let meant: Vec<&Answer> = all.into_iter().flatten().filter(is_meant).collect();
    if meant.is_empty() && service.is_some() {
        return None;
    }
    let backends = meant.into_iter().flat_map(|figures| {
        let backends = figures.get("backends").and_then(Answer::as_array);
        backends.into_iter().flatten().map(|backend| {
            let mut backend = backend.clone();
            for key in ["vip", "protocol"] {
                backend[key] = figures[key].clone();
            }
            backend["service"] = figures.get("name").unwrap_or(&figures["vip"]).clone();
            backend
        })
    });
    Some(json!({ "backends": backends.collect::<Vec<_>>() }))
}

/// Whether figures are those of a service.
fn is_meant(word: &str, figures: &Answer) -> bool {
    let text = |key: &str| figures.get(key).and_then(Answer::as_str).unwrap_or_default();
    match (text("vip").parse(), Protocol::from_name(text("protocol"))) {
        (Ok(vip), Some(protocol)) => crate::model::means_service(word, text("name"), vip, protocol),
        _ => word == text("name"),
    }
}
