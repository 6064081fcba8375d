//! Log lines on stderr, one an event: for people, or as JSON with the event's fields.
//!
//! A reader that is gone or a full disk must not stop the balancing: what cannot be written is lost.

use std::fmt;
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, filter};

use crate::config::LogFormat;

/// Our own events: what libraries have to say is not for operators.
const OWN: &str = env!("CARGO_CRATE_NAME");

/// Makes events go to stderr from now on, for the whole process. Only the first call matters.
pub fn start(format: LogFormat) {
    let own = filter::filter_fn(|event| *event.level() <= Level::INFO && event.target().starts_with(OWN));
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    let _ = match format {
        LogFormat::Human => registry.with(layer.event_format(Human).with_filter(own)).try_init(),
        LogFormat::Json => {
            let json = layer.json().flatten_event(true).with_target(false).with_current_span(false);
            registry.with(json.with_span_list(false).with_filter(own)).try_init()
        }
    };
}

/// A line for whoever typed a command, beside what it prints.
pub fn notice(text: &str) {
    let _ = writeln!(io::stderr(), "xdp-lb: {text}");
}

/// Why the process ends, as its last line.
pub fn failure(text: &str) {
    if tracing::event_enabled!(Level::ERROR) {
        tracing::error!(target: FAILURE, "{text}");
    } else {
        // Nobody has said how lines are written, so that they are for people.
        notice(text);
    }
}

const FAILURE: &str = concat!(env!("CARGO_CRATE_NAME"), "::failure");

/// `xdp-lb: warning: text`: the text has what people want to know of the fields.
struct Human;

impl<S, N> FormatEvent<S, N> for Human
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR if metadata.target() != FAILURE => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        let mut message = Message(String::new());
        event.record(&mut message);
        writeln!(to, "xdp-lb: {level}{}", message.0)
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
