//! A file that is read while another is in force.

use super::*;

#[test]
fn what_was_in_force_changes_nothing() {
    let plain = "models: [mini], team: t";
    let items = [
        plain,
        "models: [mini], team: t, expires: 2027-06-30T00:00:00Z",
        "models: [mini], team: t, expires: 2027-06-30T00:00:01Z",
        "models: [mini], team: t, expires: 2027-06-30T00:00:00+02:00",
        "models: [mini], team: t, expires: \"${WHEN}\"",
        "models: [mini], team: t, expires: 2020-06-30T00:00:00Z",
        "models: [mini], team: t, user: u1",
        "models: [mini], team: t, user: u2",
        "models: [\"*\"], team: t",
        "models: [mini], team: u",
        "models: [mini], unlimited: true",
        "models: [mini], team: t, metadata: { a: b }",
        "models: [mini], team: t, low_budget: clamp",
        "models: [mini], team: t, limits: { rpm: 1 }",
        "models: [mini], budgets: [ { usd: 3, per: day } ]",
    ];
    let around = [
        "teams: { t: { budgets: [ { usd: 9, per: day } ] } }\n",
        "teams: { t: { budgets: [ { usd: 1, per: day } ] }, u: {} }\n",
        "teams: { t: {}, u: {} }\nusers: { u2: { budgets: [ { usd: 1, per: day } ] } }\n",
        "teams: { t: {}, u: {} }\nglobal: { budgets: [ { usd: 2, per: day } ] }\n",
    ];
    let before = BASE.split("keys:").next().unwrap();
    let mut files = Vec::new();
    for item in items {
        for around in around {
            // The ids change, too.
            let ids: &[&str] = if item == plain { &["k", "j"] } else { &["k"] };
            for id in ids {
                let mut text = format!("{before}keys:\n");
                for n in 1..4 {
                    text += &format!("  - {{ id: {id}{n}, hash: {}, {item} }}\n", hash(n));
                }
                files.push((text + around, "2028-01-01T00:00:00Z"));
            }
        }
    }
    let when = files.iter().find(|(text, _)| text.contains("WHEN")).unwrap();
    files.push((when.0.clone(), "2028-01-02T00:00:00Z"));
    let (mut shared, mut made) = (0, 0);
    for (old, when) in &files {
        let Ok(old) = load(old, &Fake::default().var("WHEN", when)) else { continue };
        for (new, when) in &files {
            let environment = Fake::default().var("WHEN", when);
            let read = |old| {
                let dir = Path::new("/etc/tollbar");
                load_text(new, "tollbar.yaml", dir, &environment, old)
            };
            let reloaded = read(Some(&old.snapshot));
            for key in reloaded.iter().flat_map(|new| new.snapshot.keys.iter()) {
                let before = old.snapshot.keys.by_hash(&key.hash);
                let same = before.is_some_and(|before| std::sync::Arc::ptr_eq(before, key));
                *(if same { &mut shared } else { &mut made }) += 1;
            }
            assert_eq!(shown(reloaded), shown(read(None)), "{new}");
        }
    }
    assert!(shared > 100 && made > 1000, "{shared} {made}");
}
