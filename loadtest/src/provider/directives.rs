//! Scripts written into a model id: `sim-small+status=429+retry-after=60`.
//!
//! The name before the first `+` is free, as long as its last path segment
//! begins with `sim`. Every directive stands for one member of [`Script`].

use std::str::FromStr;

use super::script::Script;

/// Reads the directives of a model id. An id that is not ours is a plain answer.
///
/// # Errors
///
/// Names the first directive that is unknown or has a bad value: a typing
/// mistake must not turn a test into a test of nothing.
pub(crate) fn parse(model: &str) -> Result<Script, String> {
    let mut script = Script::default();
    let ours = model.rsplit('/').next().is_some_and(|name| name.starts_with("sim"));
    if !ours {
        return Ok(script);
    }
    for directive in model.split('+').skip(1) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        apply(&mut script, name, value)?;
    }
    Ok(script)
}

fn apply(script: &mut Script, name: &str, value: &str) -> Result<(), String> {
    match name {
        "status" => script.status = Some(number(name, value)?),
        "delay" => script.delay_ms = millis(name, value)?,
        "first" => script.first_ms = millis(name, value)?,
        "gap" => script.gap_ms = millis(name, value)?,
        "chunks" => script.chunks = Some(number(name, value)?),
        "tokens" => script.tokens = Some(number(name, value)?),
        "cut" => script.cut = Some(value.parse()?),
        "nousage" => script.omit_usage = true,
        "split" => script.split = Some(number(name, value)?),
        "echo" => script.echo = true,
        "truncate" => script.truncate = true,
        "errorevent" => script.error_event = Some(number(name, value)?),
        "size" => script.size = Some(number(name, value)?),
        "tool" => script.tool = true,
        "input" => script.input = Some(number(name, value)?),
        "output" => script.output = Some(number(name, value)?),
        "cached" => script.cached = number(name, value)?,
        "cachewrite" => script.cache_write = number(name, value)?,
        "reasoning" => script.reasoning = number(name, value)?,
        "retry-after" | "retry-after-ms" | "x-should-retry" => {
            script.headers.push((name.to_owned(), value.to_owned()));
        }
        "header" => {
            let Some((header, value)) = value.split_once(':') else {
                return Err(format!("header: `{value}` is not name:value"));
            };
            script.headers.push((header.to_owned(), value.to_owned()));
        }
        _ => return Err(format!("unknown directive `{name}`")),
    }
    Ok(())
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    match value.parse() {
        Ok(number) => Ok(number),
        Err(_) => Err(format!("{name}: `{value}` is not a number in range")),
    }
}

/// `200ms`, `2s`, `1.5s`; a bare number is milliseconds.
fn millis(name: &str, value: &str) -> Result<u64, String> {
    let (digits, scale) = match value.strip_suffix("ms") {
        Some(digits) => (digits, 1.0),
        None => match value.strip_suffix('s') {
            Some(digits) => (digits, 1000.0),
            None => (value, 1.0),
        },
    };
    let wrong = || format!("{name}: `{value}` is not a duration such as 200ms or 2s");
    let amount: f64 = digits.parse().map_err(|_| wrong())?;
    if !(0.0..1e12).contains(&amount) {
        return Err(wrong());
    }
    Ok((amount * scale).round() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::provider::Cut;

    #[test]
    fn every_directive_lands_in_its_member() {
        let script =
            parse("sim-small+status=429+retry-after=60+delay=1.5s+gap=20ms+cut=3+nousage").unwrap();
        assert_eq!(script.status, Some(429));
        assert_eq!(script.headers, [("retry-after".to_owned(), "60".to_owned())]);
        assert_eq!((script.delay_ms, script.gap_ms), (1500, 20));
        assert_eq!(script.cut, Some(Cut::After(3)));
        assert!(script.omit_usage);
    }

    #[test]
    fn a_foreign_model_has_no_directives_and_a_mistake_is_told() {
        assert!(parse("gpt-4o+status=500").unwrap().status.is_none());
        assert_eq!(parse("openai/sim-x+status=500").unwrap().status, Some(500));
        assert!(parse("sim-x+stauts=500").unwrap_err().contains("stauts"));
        assert!(parse("sim-x+gap=soon").is_err());
    }
}
