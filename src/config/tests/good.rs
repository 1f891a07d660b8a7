//! What a good file comes to.

use super::super::{candidates, dearer_above, find, plan};
use super::*;
use crate::config::snapshot;
use crate::scope::{Budget, Per};
use crate::units::{NanoUsd, Tier};
use std::path::PathBuf;

const MINI: &str = "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ] }";

#[test]
fn the_base_is_what_it_says() {
    let loaded = good(BASE);
    assert_eq!(loaded.warnings, []);
    let snapshot = loaded.snapshot;
    assert_eq!(snapshot.state_path, PathBuf::from("/etc/tollbar/tollbar.db"));
    assert_eq!(snapshot.admin.address, "127.0.0.1:9090".parse().unwrap());
    assert!(snapshot.admin.token.is_none());
    let provider = &snapshot.providers["openai"];
    assert_eq!(provider.catalog.as_deref(), Some("openai"));
    assert_eq!((provider.authority.as_str(), provider.port), ("api.openai.com", 443));
    let model = &snapshot.models["mini"];
    assert_eq!((model.context_window, model.max_output_tokens), (Some(128_000), None));
    assert_eq!((model.tier, model.targets[0].weight), (Tier(0), 1));
    assert_eq!(model.targets[0].price.input, 150_000);
    let key = snapshot.keys.iter().next().unwrap();
    let day = Budget { cap: NanoUsd(1_000_000_000), per: Per::Day };
    assert_eq!(key.scope.budgets, [day]);
}

#[test]
fn memory_is_a_size_or_a_word() {
    use snapshot::MaxMemory::{self, Auto, Bytes, Unlimited};
    let load = |server: &str| good(&format!("server: {{ {server} }}\n{BASE}"));
    let cases: [(&str, MaxMemory); 4] = [
        ("", Auto),
        ("max_memory: auto", Auto),
        ("max_memory: none", Unlimited),
        ("max_memory: 2GiB", Bytes(2 << 30)),
    ];
    for (text, meant) in cases {
        let loaded = load(text);
        assert_eq!((loaded.snapshot.server.max_memory, loaded.warnings), (meant, vec![]), "{text}");
    }
    let tiny = load("max_memory: 1MiB");
    assert_eq!(tiny.snapshot.server.max_memory, Bytes(1 << 20));
    assert_eq!(tiny.warnings[0].path, "server.max_memory");
}

/// A float on the way would turn 0.1 + 0.2 into something else.
#[test]
fn money_keeps_every_digit() {
    for (text, nano) in [
        ("0.1", 100_000_000),
        ("0.000000001", 1),
        ("123456789.123456789", 123_456_789_123_456_789),
        ("1.10", 1_100_000_000),
        ("'50'", 50_000_000_000),
        ("9007199.254740993", 9_007_199_254_740_993),
    ] {
        let loaded = good(&with("usd: 1,", &format!("usd: {text},")));
        let key = loaded.snapshot.keys.iter().next().unwrap();
        assert_eq!(key.scope.budgets[0].cap, NanoUsd(nano), "{text}");
    }
}

const CHAIN: &str = "mini:
    targets:
      - { provider: openai, model: gpt-4o-mini }
      - { provider: local, model: spare, price: { input: 0.3, output: 0.6 } }
      - { provider: local, model: never, weight: 0, price: free }
    max_output_tokens: 100
    fallbacks: [dear, cheap]
  dear: { max_output_tokens: 9, targets: [ { provider: local, model: d, price: { input: 0.9, output: 0.9 } }, { provider: local, model: e, price: { input: 0.2, output: 0.2 } } ], fallbacks: [mini] }
  cheap: { max_output_tokens: 9, targets: [ { provider: local, model: c, price: { input: 0.25, output: 0.25 } } ] }";

fn order(text: &str) -> Vec<String> {
    let snapshot = good(text).snapshot;
    let found = candidates(&snapshot, &snapshot.models["mini"]);
    found.iter().map(|(model, target)| format!("{} {}", model.name, target.model)).collect()
}

#[test]
fn candidates_are_own_targets_then_fallbacks_cheapest_first() {
    let text = with(MINI, CHAIN);
    assert_eq!(order(&text), ["mini gpt-4o-mini", "mini spare", "dear e", "cheap c", "dear d"]);
    let written = text.replace("[dear, cheap]", "[dear, cheap]\n    fallback_order: written");
    assert_eq!(order(&written), ["mini gpt-4o-mini", "mini spare", "dear d", "dear e", "cheap c"]);
    let loaded = good(&text);
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(loaded.warnings[0].path, "models.mini.targets[2].weight");
    let shown = plan(&loaded.snapshot);
    assert!(shown.contains("mini (tier cheap, window 128000, output at most 100)"), "{shown}");
    assert!(
        shown.contains("openai/gpt-4o-mini  $0.15 in / $0.60 out per million  cheap"),
        "{shown}"
    );
    assert!(shown.contains("worst price multiple of a fallback: 3.5x"), "{shown}");
}

/// A price that rises with the prompt's length is compared at the same length.
#[test]
fn a_fallback_that_gets_dearer_with_the_prompt_is_left_out_there() {
    let step = "steps: [ { above_input_tokens: 1000, input: 50, output: 100 }, { above_input_tokens: 100, input: 1.2, output: 2 } ]";
    let text = with(
        MINI,
        &format!(
            "mini: {{ targets: [ {{ provider: openai, model: a, price: {{ input: 0.3, output: 0.6 }} }} ], fallbacks: [f], max_output_tokens: 9 }}
  f: {{ targets: [ {{ provider: openai, model: f, price: {{ input: 0.2, output: 0.4, {step} }} }} ], max_output_tokens: 9 }}"
        ),
    );
    let snapshot = good(&text).snapshot;
    let (mini, f) = (&snapshot.models["mini"], &snapshot.models["f"].targets[0]);
    // $1.4 blended is standard, and $62.5 premium, where the first is cheap.
    assert_eq!(dearer_above(&snapshot, mini, f), Some(100));
    assert_eq!(dearer_above(&snapshot, &snapshot.models["f"], f), None);
    let shown = plan(&snapshot);
    assert!(shown.contains("(not for prompts of more than 100 tokens: dearer there)"), "{shown}");
    assert!(shown.contains("worst price multiple of a fallback: 0.7x"), "{shown}");
    // Within one tier it may get dearer, and the worst of it is said.
    let wide = text.replace("tiers:", "x-tiers:").replace("1.2, output: 2", "0.5, output: 1");
    let snapshot = good(&wide).snapshot;
    assert_eq!(
        dearer_above(&snapshot, &snapshot.models["mini"], &snapshot.models["f"].targets[0]),
        Some(1000)
    );
    assert!(
        plan(&snapshot).contains("worst price multiple of a fallback: 1.7x"),
        "{}",
        plan(&snapshot)
    );
}

#[test]
fn auto_fallbacks_are_never_dearer() {
    let text = with(
        MINI,
        "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], fallbacks: auto }
  nano: { targets: [ { provider: openai, model: gpt-4.1-nano } ] }
  big: { targets: [ { provider: openai, model: gpt-4o } ] }
  embed: { targets: [ { provider: openai, model: text-embedding-3-small } ] }",
    );
    assert_eq!(order(&text), ["mini gpt-4o-mini", "nano gpt-4.1-nano"]);
}

#[test]
fn two_models_may_name_each_other_and_tiers_are_configurable() {
    let text = with(
        MINI,
        "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], fallbacks: [big] }
  big: { targets: [ { provider: openai, model: gpt-4o } ], fallbacks: [mini] }
tiers: [ { name: all, max_blended: 4.375 }, { name: above } ]",
    );
    let snapshot = good(&text).snapshot;
    assert_eq!(snapshot.models["big"].tier, Tier(0));
    let dearer = text.replace("4.375", "4.374999");
    assert!(bad(&dearer).to_string().contains("would fall back to `big` (tier above"));
}

#[test]
fn what_may_not_be_meant_is_a_warning() {
    let cases = [
        (r#"models: ["*"]"#, r#"models: ["*", "deepsek-*"]"#, "matches no model"),
        ("models: [\"*\"]", "expires: 2020-01-01T00:00:00Z, models: [\"*\"]", "has expired"),
        ("https://api.openai.com/v1", "https://api.openai.com", "has no path"),
        ("com/v1", "com/v1/chat/completions", "base_url ends with /completions"),
        (
            "model: gpt-4o-mini",
            "model: gpt-4o-mini-search-preview-2025-03-11",
            "was retired by its provider on 2026-07-23",
        ),
        (
            "keys:",
            "global: { budgets: [ { usd: 0.5, per: month } ] }\nkeys:",
            "can never be reached: the global is $0.5 per month",
        ),
    ];
    for (from, to, part) in cases {
        let warnings = good(&with(from, to)).warnings;
        assert_eq!(warnings.len(), 1, "{to}: {warnings:?}");
        assert!(warnings[0].to_string().contains(part), "{}", warnings[0]);
    }
}

/// Requests aren't translated: it would never be tried, or always, where the model itself can't answer.
#[test]
fn a_fallback_in_another_dialect_is_a_warning_and_no_candidate() {
    let models =
        "mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], fallbacks: [flash, nano] }
  flash: { targets: [ { provider: gemini, model: gemini-2.5-flash-lite } ] }
  nano: { targets: [ { provider: openai, model: gpt-4o-mini-2024-07-18 } ] }";
    let gemini = "providers:\n  gemini: { dialect: gemini, base_url: 'https://generativelanguage.googleapis.com' }";
    let loaded = good(&with(MINI, models).replacen("providers:", gemini, 1));
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    let said = warnings.iter().find(|said| said.contains("never tried")).unwrap();
    assert!(
        said.contains("`flash` is never tried: it speaks gemini, and `mini` speaks openai"),
        "{said}"
    );
    let mini = &loaded.snapshot.models["mini"];
    let tried: Vec<_> =
        candidates(&loaded.snapshot, mini).iter().map(|(owner, _)| &*owner.name).collect();
    assert_eq!(tried, ["mini", "nano"]);
}

#[test]
fn a_model_that_reads_by_itself_wants_a_bound() {
    let research = "model: local-deep-research, price: { input: 0.1, output: 0.6 }";
    let text = with("model: gpt-4o-mini", research);
    let bounded = |more: &str| {
        let bounds = format!("max_output_tokens: 9{more}, targets:");
        good(&text.replacen("targets:", &bounds, 1)).warnings
    };
    assert!(
        bounded("")[0].to_string().contains("nothing bounds what `openai/local-deep-research`")
    );
    assert!(bounded(", unseen_input_tokens: 2000000").is_empty());
}

#[test]
fn any_scope_may_cover_a_key() {
    let own = "budgets: [ { usd: 1, per: day } ]";
    for (to, section) in [
        ("team: t", "teams: { t: { budgets: [ { usd: 1, per: day } ] } }\n"),
        ("user: u", "users: { u: { budgets: [ { usd: 1, per: day } ] } }\n"),
        ("user: v", "global: { budgets: [ { usd: 1, per: day } ] }\n"),
        ("unlimited: true", ""),
    ] {
        good(&format!("{section}{}", with(own, to)));
    }
    // A team without a budget covers nothing.
    bad(&format!("teams: {{ t: {{ limits: {{ rpm: 1 }} }} }}\n{}", with(own, "team: t")));
}

#[test]
fn the_file_that_is_asked_for_is_the_one() {
    let env = Fake::default().var("TOLLBAR_CONFIG", "/from/env.yaml");
    assert_eq!(find(Some(Path::new("x")), &env), Some("x".into()));
    assert_eq!(find(None, &env), Some("/from/env.yaml".into()));
    assert_eq!(find(None, &Fake::default()), None);
    let etc = Fake::default().file("/etc/tollbar/tollbar.yaml", "");
    assert_eq!(find(None, &etc), Some("/etc/tollbar/tollbar.yaml".into()));
    let both = etc.file("tollbar.yaml", "");
    assert_eq!(find(None, &both), Some("tollbar.yaml".into()));
}

#[test]
fn anchors_keep_numbers() {
    let text = with("usd: 1,", "usd: &cap 0.1,")
        + "users: { u: { budgets: [ { usd: *cap, per: day } ] } }\n";
    let cap = good(&text).snapshot.users["u"].budgets[0].cap;
    assert_eq!(cap, NanoUsd(100_000_000));
}
