//! Which fields of requests name a parent, `OTEL_PROPAGATORS`, and whether one
//! is written. Formats that this agent does not read are said, not guessed at.

use super::{Environment, Error};
use crate::propagation::identity::Propagators;

const NAME: &str = "OTEL_PROPAGATORS";
/// What a specification knows and this agent does not read.
const OTHERS: [&str; 5] = ["b3", "b3multi", "jaeger", "xray", "ottrace"];

/// Reads the list; none of what it names is known: as if nobody had given it.
pub(super) fn read(env: &mut Environment<'_>) -> Result<Propagators, Error> {
    let Some(given) = env.list(&[NAME])? else {
        return Ok(Propagators::default());
    };
    let mut chosen = Propagators {
        trace_context: false,
        sentry: false,
        baggage: false,
    };
    let mut known = false;
    for word in &given.value {
        match word.to_ascii_lowercase().as_str() {
            "tracecontext" => (chosen.trace_context, chosen.sentry) = (true, true),
            "baggage" => (chosen.baggage, chosen.sentry) = (true, true),
            "sentry" => (chosen.baggage, chosen.sentry) = (true, true),
            "none" => {}
            other if OTHERS.contains(&other) => {
                env.warn(
                    NAME,
                    format_args!("`{word}` is ignored: this agent reads no such fields"),
                );
                continue;
            }
            _ => {
                env.warn(
                    NAME,
                    format_args!("`{word}` is ignored: not one of tracecontext, baggage, sentry, none"),
                );
                continue;
            }
        }
        known = true;
    }
    Ok(if known { chosen } else { Propagators::default() })
}

/// Whether contexts may be written, if they are to be.
///
/// # Errors
/// They are, and `propagators` lack what would be written.
pub fn writable(inject: bool, propagators: Propagators) -> Result<(), Error> {
    if inject && !propagators.trace_context {
        return Err(Error::new(
            "--inject",
            format_args!("a traceparent can't be written where {NAME} does not name tracecontext"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn given(list: &str) -> (Propagators, Vec<String>) {
        let mut env = Environment::new(|name| (name == NAME).then(|| list.into()));
        let read = read(&mut env).unwrap();
        (read, env.into_warnings())
    }

    #[test]
    fn what_is_named_is_read_and_what_can_t_be_is_said() {
        let words = |p: Propagators| (p.trace_context, p.sentry, p.baggage);
        for (list, expected, warnings) in [
            ("", (true, true, true), 0),
            ("tracecontext,baggage", (true, true, true), 0),
            ("TraceContext", (true, true, false), 0),
            ("baggage", (false, true, true), 0),
            ("none", (false, false, false), 0),
            ("b3", (true, true, true), 1),
            ("tracecontext,b3multi,xray", (true, true, false), 2),
            ("tracecontex", (true, true, true), 1),
        ] {
            let (read, said) = given(list);
            assert_eq!((words(read), said.len()), (expected, warnings), "{list}: {said:?}");
        }
    }

    #[test]
    fn nothing_is_written_against_the_list() {
        let none = Propagators {
            trace_context: false,
            ..Propagators::default()
        };
        assert_eq!(writable(true, none).unwrap_err().setting, "--inject");
        assert!(writable(true, Propagators::default()).is_ok() && writable(false, none).is_ok());
    }
}
