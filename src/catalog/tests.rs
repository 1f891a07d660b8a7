//! Prices against sums done by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::units::{NanoUsd, Usage};

fn price(provider: &str, id: &str) -> Price {
    let card = Catalog::builtin().find(provider, id);
    card.unwrap_or_else(|| panic!("{provider}/{id}")).price.clone()
}

fn tokens(input: u64, output: u64) -> Usage {
    Usage { input: Some(input), output: Some(output), ..Usage::default() }
}

#[test]
fn every_row_is_read_and_priced() {
    let index = index();
    assert_eq!(index.rows.len(), BUILTIN.lines().count() - 1);
    for ((provider, id), line) in &index.rows {
        let card = row::parse(line, &index.version).unwrap_or_else(|| panic!("{line}"));
        assert_eq!((card.provider.as_str(), card.id.as_str()), (*provider, *id));
        assert!(card.price.is_known(), "{line}");
        let write = card.price.cache_write.unwrap_or(card.price.input);
        assert!(write >= card.price.input, "{line}");
        // Perplexity's own ids do begin with vendors' names, its own among them.
        let prefixed = id.starts_with(&format!("{provider}/"));
        assert!(!prefixed || *provider == "perplexity", "{line}");
    }
    assert_eq!(&*index.version, "catalogue-2026-11");
}

/// 1 000 000 uncached × $0.15 + 1 000 000 cached × $0.075 + 1 000 000 out × $0.60, per million.
#[test]
fn gpt_4o_mini() {
    let price = price("openai", "gpt-4o-mini");
    let usage = Usage { cached_input: Some(1_000_000), ..tokens(2_000_000, 1_000_000) };
    assert_eq!(price.cost(&usage), NanoUsd(825_000_000));
    // 7 × 150 nano-dollars + 3 × 600 = 2 850.
    assert_eq!(price.cost(&tokens(7, 3)), NanoUsd(2_850));
    // One cached token is 75 nano-dollars.
    let one = Usage { cached_input: Some(1), ..tokens(1, 0) };
    assert_eq!(price.cost(&one), NanoUsd(75));
    assert_eq!(price.blended(), 262_500);
    // Priority: $0.25 and $1.
    let fast = price.cost_of(&tokens(1_000, 1_000), Units::default(), Service::Priority);
    assert_eq!(fast, NanoUsd(1_250_000));
}

/// $3 in, $15 out, cache read $0.30, written for 5 minutes $3.75, for an hour $6.
#[test]
fn claude_with_both_caches() {
    let price = price("anthropic", "claude-sonnet-4-5");
    let usage = Usage {
        cached_input: Some(10_000),
        cache_write: Some(3_000),
        cache_write_1h: Some(1_000),
        ..tokens(15_000, 2_000)
    };
    // 2 000 × 3 000 + 10 000 × 300 + 2 000 × 3 750 + 1 000 × 6 000 + 2 000 × 15 000
    assert_eq!(
        price.cost(&usage),
        NanoUsd(6_000_000 + 3_000_000 + 7_500_000 + 6_000_000 + 30_000_000)
    );
}

/// $0.28 in, $0.028 on a cache hit, $0.42 out; the misses are plain input, not free.
#[test]
fn deepseek() {
    let price = price("deepseek", "deepseek-chat");
    let usage = Usage { cached_input: Some(900), cache_write: Some(100), ..tokens(1_000, 500) };
    assert_eq!(price.cost(&usage), NanoUsd(900 * 28 + 100 * 280 + 500 * 420));
    // 28 picodollars × 1 000 = exactly 28; a single cached token at $0.006 is 6 nano-dollars.
    let flash = self::price("deepseek", "deepseek-v4-flash");
    assert_eq!(flash.cost(&Usage { cached_input: Some(1), ..tokens(1, 0) }), NanoUsd(6));
}

/// $1.25 / $10 up to 200 000 tokens of input, then $2.50 / $15 for all of them.
#[test]
fn gemini_long_prompts() {
    let price = price("gemini", "gemini-2.5-pro");
    assert_eq!(price.cost(&tokens(200_000, 1_000)), NanoUsd(200_000 * 1_250 + 1_000 * 10_000));
    assert_eq!(price.cost(&tokens(200_001, 1_000)), NanoUsd(200_001 * 2_500 + 1_000 * 15_000));
    let cached = Usage { cached_input: Some(200_000), ..tokens(200_001, 0) };
    assert_eq!(price.cost(&cached), NanoUsd(200_000 * 250 + 2_500));
    let worst = price.worst_case(200_001, 1_000, Service::Standard);
    assert_eq!(worst, price.cost(&tokens(200_001, 1_000)));
}

#[test]
fn groq_bills_ten_seconds_at_least() {
    let groq = price("groq", "whisper-large-v3");
    let of = |ms| groq.cost(&Usage { duration_ms: Some(ms), ..Usage::default() }).0;
    assert_eq!([of(2_000), of(10_000), of(20_000)], [308_300, 308_300, 616_600]);
    assert_eq!(groq.units_worst(1, 100, 0), NanoUsd(308_300));
    assert_eq!(groq.cost(&Usage::default()), NanoUsd(0));
    let told = Usage { duration_ms: Some(2_000), ..Usage::default() };
    assert_eq!(price("openai", "whisper-1").cost(&told), NanoUsd(200_000));
}

#[test]
fn audio_reasoning_seconds_characters_and_searches() {
    let price = Price {
        input: 1_000_000,
        output: 2_000_000,
        reasoning: Some(3_000_000),
        audio_input: Some(10_000_000),
        audio_output: Some(20_000_000),
        per_search: Some(NanoUsd(10_000_000)),
        ..Price::default()
    };
    let usage = Usage {
        audio_input: Some(10),
        audio_output: Some(5),
        reasoning: Some(20),
        web_searches: Some(2),
        ..tokens(100, 50)
    };
    let expected = 90 * 1_000 + 10 * 10_000 + 25 * 2_000 + 20 * 3_000 + 5 * 20_000 + 2 * 10_000_000;
    assert_eq!(price.cost(&usage), NanoUsd(expected));
    let whisper = self::price("openai", "whisper-1");
    let minute = Usage { duration_ms: Some(60_000), ..Usage::default() };
    assert_eq!(whisper.cost(&minute), NanoUsd(6_000_000));
    let speech = self::price("openai", "tts-1");
    let units = Units { characters: 1_000, ..Units::default() };
    assert_eq!(speech.cost_of(&Usage::default(), units, Service::Standard), NanoUsd(15_000_000));
}

#[test]
fn fractions_are_rounded_up_once_and_contradictions_to_the_dearer_side() {
    let price = Price { input: 1, output: 1, ..Price::default() };
    assert_eq!(price.cost(&tokens(1, 1)), NanoUsd(1));
    assert_eq!(price.cost(&tokens(999, 1)), NanoUsd(1));
    assert_eq!(price.cost(&tokens(1_000, 1)), NanoUsd(2));
    assert_eq!(price.cost(&Usage::default()), NanoUsd(0));
    let huge = Price { input: u64::MAX, ..Price::default() };
    assert_eq!(huge.cost(&tokens(u64::MAX, 0)), NanoUsd(u64::MAX));
    // More cached than there was input: the cached tokens are billed all the same.
    let cached = Usage { cached_input: Some(5_000), ..tokens(1_000, 0) };
    assert_eq!(price.cost(&cached), NanoUsd(5));
    assert_eq!(Price::free().cost(&tokens(u64::MAX, u64::MAX)), NanoUsd(0));
}

/// Whatever is reported, the hold that was taken for it was enough.
#[test]
fn worst_case_bounds_every_cost() {
    for ((_, id), line) in &index().rows {
        let price = row::parse(line, &index().version).unwrap().price;
        for input in [0, 10, 100_000, 150_000, 250_000, 300_000] {
            for kind in 0..6 {
                let all = Some(input);
                let mut usage = tokens(input, 1_000);
                match kind {
                    1 => usage.cached_input = all,
                    2 => usage.cache_write = all,
                    3 => (usage.cache_write, usage.cache_write_1h) = (all, all),
                    4 => (usage.audio_input, usage.audio_output) = (all, Some(1_000)),
                    5 => usage.reasoning = Some(1_000),
                    _ => {}
                }
                for service in [Service::Standard, Service::Flex, Service::Priority] {
                    let cost = price.cost_of(&usage, Units::default(), service);
                    let worst = price.worst_case(input, 1_000, service);
                    assert!(cost <= worst, "{id} {usage:?}: {} > {}", cost, worst);
                }
            }
        }
    }
}

#[test]
fn providers_are_known_by_their_hosts() {
    let cases = [
        ("api.openai.com", "x", Some("openai")),
        ("API.OpenAI.com", "x", Some("openai")),
        ("acme.openai.azure.com", "x", Some("azure")),
        ("evilapi.openai.com.example", "x", None),
        ("notapi.openai.com", "x", None),
        ("europe-west1-aiplatform.googleapis.com", "x", Some("vertex_ai")),
        ("bedrock-runtime.us-east-1.amazonaws.com", "x", Some("bedrock@us-east-1")),
        ("127.0.0.1", "groq", Some("groq")),
        ("127.0.0.1", "mine", None),
    ];
    for (host, name, expected) in cases {
        assert_eq!(provider_of(host, name).as_deref(), expected, "{host} {name}");
    }
}

#[test]
fn ids_are_exact_but_for_what_the_providers_themselves_write() {
    let catalog = Catalog::builtin();
    assert!(catalog.find("gemini", "models/gemini-2.5-pro").is_some());
    let tuned = catalog.find("openai", "ft:gpt-4o-mini-2024-07-18:acme::abc").unwrap();
    assert_eq!(tuned.price.input, 300_000);
    assert!(catalog.find("openai", "gpt-4o-mini-2099").is_none());
    let here = catalog.find("bedrock@us-gov-east-1", "anthropic.claude-sonnet-4-5-20250929-v1:0");
    assert_eq!(here.unwrap().price.input, 3_600_000);
    let own = ModelCard { provider: "openai".into(), ..(*tuned).clone() };
    let own = Catalog::with(vec![ModelCard { id: "gpt-4o-mini".into(), ..own }]);
    assert_eq!(own.find("openai", "gpt-4o-mini").unwrap().price.input, 300_000);
}

#[test]
fn the_index_is_built_in_no_time() {
    let start = std::time::Instant::now();
    let _ = Catalog::builtin().find("openai", "gpt-4o-mini");
    assert!(start.elapsed().as_millis() < 200);
}

/// Faster is never cheaper, and neither is a longer prompt.
#[test]
fn no_tier_and_no_step_undercuts_the_list_price() {
    let mut odd = Vec::new();
    for line in include_str!("../../conf/catalog.jsonl").lines() {
        let Some(card) = row::parse(line, &"x".into()) else { continue };
        let price = &card.price;
        let dearer = |rates: &Rates| {
            (rates.input == 0 || rates.input >= price.input) && rates.output >= price.output
        };
        if !price.priority.iter().all(dearer) || !price.steps.iter().all(|s| dearer(&s.rates)) {
            odd.push(format!("{}/{}", card.provider, card.id));
        }
    }
    assert_eq!(odd, [""; 0]);
}

#[test]
fn searches_at_google_are_billed_by_request_or_by_search() {
    let used = |n| Usage { web_searches: Some(n), ..Usage::default() };
    for (id, none, one, three) in [
        ("gemini-2.5-flash", 0, 35_000_000, 35_000_000),
        ("gemini-3-flash-preview", 0, 14_000_000, 42_000_000),
    ] {
        let price = price("gemini", id);
        assert_eq!([0, 1, 3].map(|n| price.cost(&used(n)).0), [none, one, three], "{id}");
        assert_eq!(price.units_worst(1, 0, 3).0, three, "{id}");
        assert_eq!(price.units_worst(1, 0, 0).0, 0, "{id}");
    }
}

#[test]
fn searches_by_openais_older_tool_are_dearer_where_models_dont_reason() {
    let used = Usage { web_searches: Some(2), ..Usage::default() };
    for (id, cents, by_preview) in [
        ("gpt-4o", 1.0, 2.5),
        ("gpt-4.1-mini", 1.0, 2.5),
        ("gpt-5-chat-latest", 1.0, 2.5),
        ("gpt-5", 1.0, 1.0),
        ("o4-mini", 1.0, 1.0),
        ("gpt-4o-search-preview", 2.5, 2.5),
    ] {
        let price = price("openai", id);
        for (preview, cents) in [(false, cents), (true, by_preview)] {
            let two = NanoUsd((2.0 * cents * 1e7) as u64);
            assert_eq!(price.searched_by(preview).cost(&used), two, "{id}");
            assert_eq!(price.searched_by(preview).units_worst(1, 0, 2), two, "{id}");
        }
    }
}
