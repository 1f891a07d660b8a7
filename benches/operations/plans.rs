//! Which targets may be tried, in which order.

use super::{Clock, Operation, Work, single};
use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};
use tollbar::config::{self, ProcessEnvironment, Snapshot};
use tollbar::keys::{Allow, Caller, Profile, Standing};
use tollbar::plan;
use tollbar::plan::health::HealthTable;
use tollbar::units::Dialect;

pub fn operations() -> Vec<Operation> {
    vec![
        single("plan/1-target", || order(1, &model("m0", 1, ""))),
        single("plan/3-targets-2-fallbacks", || order(5, &routed("m0", ""))),
        single("plan/200-models", || {
            let models: String = (0..200).map(|n| routed(&format!("m{n}"), "")).collect();
            order(5, &models)
        }),
        single("plan/latency-budget", || order(5, &routed("m0", ", latency_budget: 500ms"))),
    ]
}

fn order(candidates: usize, models: &str) -> Box<dyn Work> {
    let snapshot = snapshot(models);
    let asked = snapshot.models["m0"].clone();
    let caller = Caller {
        id: "key".into(),
        hash: [0; 32],
        expires: None,
        standing: Standing::Active,
        profile: Profile { models: Allow::new(["m*", "f*"]), ..Profile::default() }.into(),
    };
    let health = HealthTable::default();
    let now = Instant::now();
    for target in &asked.targets {
        for ms in 0..128 {
            let permit = health.of(&target.id).admit(now).ok().unwrap();
            permit.succeeded(now, Some(Duration::from_millis(100 + ms)));
        }
    }
    let clock = Clock::default();
    Box::new(move |lane| {
        let conversation = clock.look(lane).as_micros() as u64;
        let question = plan::Asked {
            dialect: Dialect::OpenAi,
            affinity: || conversation,
            exceeds: |tokens| tokens < 1_000,
        };
        let plan = plan::order(&snapshot, &caller, &asked, question, &health, now);
        assert_eq!(black_box(plan).len(), candidates);
    })
}

fn snapshot(models: &str) -> Snapshot {
    let mut text = "listeners: [{ address: 127.0.0.1:0 }]\n\
        keys: [{ id: k, hash: \"sha256:00\", models: [\"*\"], unlimited: true }]\n\
        providers:\n"
        .replace("00", &"0".repeat(64));
    for n in 0..5 {
        let _ = writeln!(
            text,
            "  p{n}: {{ dialect: openai, base_url: \"http://127.0.0.{}:1/v1\" }}",
            n + 1
        );
    }
    let _ = write!(text, "models:\n{}{}{models}", model("f0", 1, ""), model("f1", 1, ""));
    let here = Path::new(".");
    match config::load_text(&text, "bench", here, &ProcessEnvironment, None) {
        Ok(loaded) => loaded.snapshot,
        Err(invalid) => panic!("{invalid:?}"),
    }
}

fn routed(name: &str, more: &str) -> String {
    model(name, 3, &format!(", fallbacks: [f0, f1]{more}"))
}

fn model(name: &str, targets: usize, more: &str) -> String {
    let target = |n: usize| {
        format!("{{ provider: p{n}, model: up-{name}, price: {{ input: 0.15, output: 0.6 }} }}")
    };
    let targets: Vec<String> = (0..targets).map(target).collect();
    format!("  {name}: {{ targets: [ {} ]{more} }}\n", targets.join(", "))
}
