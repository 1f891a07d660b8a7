//! Prices that are written down here, in a target or in the file that `prices.file` names.

use super::file::{self, File, PriceMap, PriceStep};
use super::problem::{Place, Problem, Report};
use super::read::{Named, Read};
use super::snapshot::Provider;
use super::suggest;
use super::text::Texts;
use super::yaml;
use crate::catalog::{self, Catalog, ModelCard, Price, Rates, Step};
use crate::units::NanoUsd;
use ahash::AHashMap;
use std::sync::Arc;

/// The built-in catalogue, with the prices file on top if there is one.
pub(crate) fn catalog(
    file: &File,
    texts: Texts<'_>,
    providers: &AHashMap<String, Arc<Provider>>,
    report: &mut Report,
) -> Arc<Catalog> {
    let named = file.prices.as_ref().and_then(|prices| prices.file.as_ref());
    let Some(raw) = named else {
        return Catalog::builtin();
    };
    let Some((path, content)) = texts.file(raw, report) else {
        return Catalog::builtin();
    };
    let mut inner = Report::default();
    let hash = hex::encode(&crate::secret::sha256(content.as_bytes())[..4]);
    let version: Arc<str> = format!("prices-{hash}").into();
    let rows = yaml::parse(&content, &mut inner)
        .and_then(|tree| Named::<file::Price>::read(&tree, "", &mut inner))
        .unwrap_or_default();
    let cards = rows
        .0
        .iter()
        .filter_map(|(name, at)| card(name, &at.place, &at.value, providers, &version, &mut inner));
    let cards = cards.collect();
    let source = path.display().to_string();
    let outer = |inner: Problem| Problem {
        line: raw.place.line,
        path: raw.place.path.clone(),
        message: Problem { fix: String::new(), ..inner.clone() }.located(&source).to_string(),
        fix: inner.fix,
    };
    report.problems.extend(inner.problems.into_iter().map(outer));
    report.warnings.extend(inner.warnings.into_iter().map(outer));
    Arc::new(Catalog::with(cards))
}

/// One `provider/model: { … }` of a prices file.
fn card(
    name: &str,
    at: &Place,
    written: &file::Price,
    providers: &AHashMap<String, Arc<Provider>>,
    version: &Arc<str>,
    report: &mut Report,
) -> Option<ModelCard> {
    let Some((provider, id)) = name.split_once('/').filter(|(_, id)| !id.is_empty()) else {
        report.problem(at, "not `provider/model`", "Write, for example, `openai/gpt-4o-mini:`");
        return None;
    };
    if !providers.contains_key(provider) && !catalog::knows_provider(provider) {
        let fix = suggest::fix(provider, providers.keys().map(String::as_str));
        report.problem(at, format!("unknown provider `{}`", suggest::shown(provider)), fix);
        return None;
    }
    let known = Catalog::builtin().find(provider, id);
    let known = known.as_deref();
    let (window, output) = match written {
        file::Price::Map(map) => (map.context_window.as_ref(), map.max_output_tokens.as_ref()),
        file::Price::Free => (None, None),
    };
    Some(ModelCard {
        id: id.to_owned(),
        provider: provider.to_owned(),
        mode: known.map_or_else(|| "chat".to_owned(), |card| card.mode.clone()),
        max_input_tokens: known.and_then(|card| card.max_input_tokens),
        max_output_tokens: output
            .map(|n| n.value.0)
            .or_else(|| known.and_then(|card| card.max_output_tokens)),
        context_window: window
            .map(|n| n.value.0)
            .or_else(|| known.and_then(|card| card.context_window)),
        deprecation: known.and_then(|card| card.deprecation),
        price: price(written, at, version, report)?,
    })
}

/// The price of a target that brings its own.
pub(crate) fn of_target(written: &file::Price, at: &Place, report: &mut Report) -> Option<Price> {
    if let file::Price::Map(map) = written {
        let elsewhere = [
            ("context_window", map.context_window.as_ref()),
            ("max_output_tokens", map.max_output_tokens.as_ref()),
        ];
        for (key, value) in elsewhere {
            if let Some(value) = value {
                let fix = format!("Write `{key}` beside `targets`");
                report.problem(&value.place, "is not part of a price", fix);
            }
        }
    }
    price(written, at, &"config".into(), report)
}

fn price(
    written: &file::Price,
    at: &Place,
    version: &Arc<str>,
    report: &mut Report,
) -> Option<Price> {
    let map = match written {
        file::Price::Free => {
            return Some(Price { version: Arc::clone(version), ..Price::free() });
        }
        file::Price::Map(map) => map,
    };
    if !complete(map, at, report) {
        return None;
    }
    let rate = |r: &Option<super::read::Rate>| r.map(|r| r.0);
    Some(Price {
        input: rate(&map.input).unwrap_or(0),
        output: rate(&map.output).unwrap_or(0),
        cached_input: rate(&map.cached_input),
        cache_write: rate(&map.cache_write),
        cache_write_1h: rate(&map.cache_write_1h),
        reasoning: rate(&map.reasoning),
        audio_input: rate(&map.audio_input),
        audio_output: rate(&map.audio_output),
        cached_audio_input: rate(&map.cached_audio_input),
        per_request: map.per_request,
        per_image: map.per_image,
        per_second: map.per_second,
        least_seconds: 0,
        per_character: map.per_character,
        per_search: map.per_search,
        per_preview_search: None,
        per_searched_request: map.per_searched_request,
        steps: steps(map, report),
        flex: None,
        priority: None,
        free: false,
        version: Arc::clone(version),
    })
}

/// A price that leaves a side out would make that side free in silence.
fn complete(map: &PriceMap, at: &Place, report: &mut Report) -> bool {
    let tokens = map.input.is_some() || map.output.is_some();
    let unreadable = map.given.len()
        > [
            map.input.is_some(),
            map.output.is_some(),
            map.cached_input.is_some(),
            map.cache_write.is_some(),
            map.cache_write_1h.is_some(),
            map.reasoning.is_some(),
            map.audio_input.is_some(),
            map.audio_output.is_some(),
            map.cached_audio_input.is_some(),
            map.per_request.is_some(),
            map.per_image.is_some(),
            map.per_second.is_some(),
            map.per_character.is_some(),
            map.per_search.is_some(),
            map.per_searched_request.is_some(),
            map.steps.is_some(),
            map.context_window.is_some(),
            map.max_output_tokens.is_some(),
        ]
        .iter()
        .filter(|given| **given)
        .count();
    if unreadable {
        return false;
    }
    let units = [map.per_request, map.per_image, map.per_second, map.per_character];
    let zero = |r: &Option<super::read::Rate>| r.is_none_or(|r| r.0 == 0);
    for (key, there) in [("input", map.input.is_some()), ("output", map.output.is_some())] {
        if tokens && !there {
            let fix = format!("Write `{key}: 0` if it is not billed");
            report.problem(&at.key(key), "missing", fix);
            return false;
        }
    }
    let nothing = units.iter().all(|unit| unit.is_none_or(|n| n == NanoUsd(0)));
    if nothing && zero(&map.input) && zero(&map.output) {
        let fix = "Write `{ input: …, output: … }`, or `price: free` if it really costs nothing";
        report.problem(at, "the price is zero", fix);
        return false;
    }
    true
}

fn steps(map: &PriceMap, report: &mut Report) -> Vec<Step> {
    map.steps.iter().flatten().filter_map(|step| one_step(step, report)).collect()
}

fn one_step(step: &PriceStep, report: &mut Report) -> Option<Step> {
    for key in ["above_input_tokens", "input", "output"] {
        if !step.has(key) {
            let fix = "Write `{ above_input_tokens: 200000, input: …, output: … }`";
            report.problem(&step.place.key(key), "missing", fix);
        }
    }
    let rate = |r: &Option<super::read::Rate>| r.map(|r| r.0);
    Some(Step {
        above_input_tokens: step.above_input_tokens?.0,
        rates: Rates {
            input: step.input?.0,
            output: step.output?.0,
            cached_input: rate(&step.cached_input),
            cache_write: rate(&step.cache_write),
            cache_write_1h: rate(&step.cache_write_1h),
            reasoning: rate(&step.reasoning),
            audio_input: rate(&step.audio_input),
            audio_output: rate(&step.audio_output),
            cached_audio_input: None,
        },
    })
}
