//! What changed from one set of figures to the next, as JSON.

use std::time::Duration;

use serde_json::{Value, json};

/// Gives each backend what it had a second since earlier figures: connections, and packets and bytes both ways.
pub(super) fn with_rates(now: &Value, earlier: Option<(&Value, Duration)>) -> Value {
    let mut with = now.clone();
    let Some((before, time)) = earlier else { return with };
    for service in with["services"].as_array_mut().into_iter().flatten() {
        let same = |old: &&Value| old["vip"] == service["vip"] && old["protocol"] == service["protocol"];
        let Some(old) = before["services"].as_array().into_iter().flatten().find(same) else { continue };
        for backend in service["backends"].as_array_mut().into_iter().flatten() {
            let same = |old: &&Value| old["address"] == backend["address"];
            if let Some(old) = old["backends"].as_array().into_iter().flatten().find(same) {
                backend["rates"] = rates(backend, old, time);
            }
        }
    }
    with["seconds"] = json!(time.as_secs_f64());
    with
}

fn rates(now: &Value, old: &Value, time: Duration) -> Value {
    let rate = |pointer: &str| {
        let count = |figures: &Value| figures.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        count(now).saturating_sub(count(old)) as f64 / time.as_secs_f64().max(1e-3)
    };
    json!({
        "connections": rate("/connections"),
        "to_backend": { "packets": rate("/to_backend/packets"), "bytes": rate("/to_backend/bytes") },
        "to_client": { "packets": rate("/to_client/packets"), "bytes": rate("/to_client/bytes") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(connections: u64, bytes: u64) -> Value {
        let counter = json!({"packets": 0, "bytes": bytes});
        json!({"services": [{"vip": "192.0.2.1:80", "protocol": "tcp", "backends": [{
            "address": "10.0.0.1:80", "connections": connections, "to_backend": counter, "to_client": counter,
        }]}]})
    }

    #[test]
    fn rates_are_of_a_second_and_never_below_zero() {
        let now = figures(30, 5);
        let with = with_rates(&now, Some((&figures(10, 9), Duration::from_secs(2))));
        let rates = &with["services"][0]["backends"][0]["rates"];
        assert_eq!(rates["connections"], json!(10.0));
        assert_eq!(rates["to_client"]["bytes"], json!(0.0), "it was restarted");
        assert_eq!(with["seconds"], json!(2.0));
        assert_eq!(with_rates(&now, None), now);
        let other = json!({"services": []});
        let with = with_rates(&now, Some((&other, Duration::ZERO)));
        assert_eq!(with["services"], now["services"]);
    }
}
