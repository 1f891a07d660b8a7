//! However a file is read, it says the same.

mod again;
mod spoilt;

use super::super::alike::{self, Item, KeyList};
use super::super::problem::Report;
use super::super::yaml::{self, Node};
use super::*;
use proptest::prelude::*;

/// The same text, but with a character because of which it is parsed whole.
fn whole(text: &str) -> String {
    text.replacen('\n', " # \u{E0F7}\n", 1)
}

/// Items as they are written, and as they surely shouldn't be. `@` is a number that differs,
/// `#64` a hash of it.
const ITEMS: &[&str] = &[
    "  - { id: k@, hash: \"sha256:#64\", models: [\"*\"], team: t }\n",
    "  - { id: k@, hash: \"sha256:#64\", models: [\"*\"], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], user: u@, budgets: [ { usd: 1, per: day } ] }\n",
    "  - {\"id\": \"k@\", \"hash\": \"sha256:#64\", \"models\": [\"*\"], \"unlimited\": true}\n",
    "  - id: k@\n    hash: sha256:#64\n    models: [\"*\"]  # all\n    team: t\n",
    "  - id: k@\n    hash: sha256:#64\n    models: [\"*\"]  # all\n    team: t\n",
    "  - id: \"k@\"\n    hash: 'sha256:#64'\n    user: u@\n    models:\n      - mini\n      - \"*\"\n    budgets: [ { usd: 3, per: day } ]\n\n",
    "  - id: k@ # of somebody\n    # indeed\n    models: [mini]\n    expires: 2027-0@-30T00:00:00Z\n    hash: sha256:#64\n    team: t\n",
    "  - id: k@\n    hash: sha256:#64\n    models: [mini]\n    expires: 2026-1@-30T00:00:00Z\n    team: t\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t, expires: 2020-01-0@T00:00:00Z }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], user: u@ }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t, expires: 2027-13-0@T00:00:00Z }\n",
    "  - { id: k@, hash: sha256:#64, models: [mimi], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], taem: t }\n",
    "  - { id: null, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: True, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: 12@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: !!str k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: tb-01234567890123456789@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: k@ k, hash: sha256:#64, models: [mini], team: t }\n",
    "  - id: k@, k\n    hash: sha256:#64\n    models: [mini]\n    team: t\n",
    "  - id: k@\n     k\n    hash: sha256:#64\n    models: [mini]\n    team: t\n",
    "  - id: k@\n# in between\n    hash: sha256:#64\n    models: [mini]\n    team: t\n",
    "  - { id : k@, hash: sha256:#64, models: [mini], team: t, metadata: { id: k@ } }\n",
    "  - { metadata: { id: k@ }, id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: k@, metadata: { user: u@, id: x@ }, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { \"\\x69d\": k@, hash: sha256:#64, models: [mini], team: t } # id: k@\n",
    "  - { id: k@, id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t, team: t }\n",
    "  - { id: \"k\\u00e@9\", hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: \"k@\" , hash: sha256:12@, models: [mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: &m [mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: *m , team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: *all , team: t }\n",
    "  - { id: &i k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: *i , hash: sha256:#64, models: [mini], team: t }\n",
    "  - id: k@\n    hash: sha256:#64\n    models: [mini]\n    team: t\n    metadata:\n      a: |\n        id: k@\n\n  # no text\n",
    "  - id: k@\n    hash: sha256:#64\n    models: [mini]\n    team: t\n    metadata: { a: |\n  x }\n",
    "  - { id: k@, hash: sha256:#64, models: [\n  mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini],\n      team: t }\n",
    "  - \"k@\"\n",
    "  - k@\n    - { id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  -\n    id: k@\n    hash: sha256:#64\n    models: [mini]\n    team: t\n",
    "  -  id: k@\n     hash: sha256:#64\n     models: [mini]\n     team: t\n",
    "  - - { id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    "   - { id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    " - { id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t }\r\n",
    "  - { id: k@,\thash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: é@, hash: sha256:#64, models: [mini], team: é }\n",
    "  # a comment\n",
    "# another: { id: k@ }\n",
    "\n",
    "    \n",
    "---\n",
    "...\n",
    "foo: \"\n",
    "'\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t, metadata: { a: \"\n",
    "  - id: 'z @'\n    hash: sha256:#64\n    models: [mini]\n    team: t # \" } }\n",
    "  - { metadata: { a: \"\n",
    "  - { metadata: { a: \" }, id: k@, hash: sha256:#64, models: [mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [*all , mini], team: t }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t, expires: 2027-06-30T00:00:00+02:00 }\n",
    "  - { id: k@, hash: sha256:#64, models: [mini], team: t, user: \"a b\" }\n",
    "  # \u{FEFF}\n",
    "  # \u{0}\n",
    "\u{FEFF}  # \n",
    "  ? a\n  : b\n",
];

const HEADS: &[&str] = &[
    "keys:\n",
    "keys:\n",
    "keys:   # of apps\n\n# they\n",
    "all: &all [mini]\nkeys:\n",
    "\"keys\": [ { id: z } ]\nkeys:\n",
    "x: |\n keys:\nkeys:\n",
    "x: \"\nkeys:\n",
    "x: [\nkeys:\n",
    "x: |\nkeys:\n",
    "--- |\nkeys:\n",
    "keys: # first\n  - { id: y, hash: sha256:#64, models: [mini], team: t }\nkeys:\n",
    "keys: &k\n",
    "keys: [\n",
    "keys: |\n",
];

const TAILS: &[&str] =
    &["", "", "teams: { t: { budgets: [ { usd: 2, per: day } ] } }\n", "  ]\n", "\"\n"];

fn text() -> impl Strategy<Value = String> {
    let some = prop::sample::select(ITEMS);
    let few = prop::sample::subsequence(ITEMS, 1..4);
    // Of few kinds many are alike; of many kinds few are.
    let items = prop_oneof![
        (few, prop::collection::vec(any::<prop::sample::Index>(), 0..12))
            .prop_map(|(few, order)| order.iter().map(|i| *i.get(&few)).collect::<Vec<_>>()),
        prop::collection::vec(some, 0..10),
    ];
    let numbers = prop_oneof![Just(1000usize), Just(9), Just(3)];
    (prop::sample::select(HEADS), items, prop::sample::select(TAILS), numbers).prop_map(
        |(head, items, tail, numbers)| {
            let before = BASE.split("keys:").next().unwrap();
            let mut text = format!("{before}{head}");
            for (n, item) in items.iter().enumerate() {
                let n = n % numbers + 1;
                let hash = format!("{:064x}", n);
                text += &item.replace("#64", &hash).replace('@', &n.to_string());
            }
            text + tail
        },
    )
}

/// Every item as a node, parsed or not.
fn expanded(list: KeyList<'_>) -> (Vec<Node>, usize) {
    let (mut nodes, mut alike) = (Vec::new(), 0);
    let mut firsts = std::collections::HashMap::new();
    for item in list.items {
        match item {
            Item::Own(node) => nodes.push(node),
            Item::First(node, shape) => {
                firsts.insert(shape, node.clone());
                nodes.push(node);
            }
            Item::Run(run) => {
                for item in list.cut.run(run) {
                    let shape = item.shape as usize;
                    let from = list.cut.line(shape);
                    let words = list.cut.words(*item);
                    nodes.push(words.node(&firsts[&shape], from, item.line as usize));
                    alike += 1;
                }
            }
        }
    }
    (nodes, alike)
}

fn both(text: &str) -> usize {
    let (mut fast, mut slow) = (Report::default(), Report::default());
    let quick = alike::parse(text, &mut fast);
    let mut whole = yaml::parse(text, &mut slow);
    assert_eq!(fast.problems, slow.problems, "{text}");
    assert_eq!(quick.is_some(), whole.is_some(), "{text}");
    let (Some((root, list)), Some(whole)) = (quick, &mut whole) else { return 0 };
    let (items, alike) = expanded(list);
    let listed = whole.entry_mut("keys").map(|keys| &mut keys.value.kind);
    if let Some(yaml::Kind::Seq(listed)) = listed {
        assert_eq!(&std::mem::take(listed), &items, "{text}");
    }
    assert_eq!(&root, whole, "{text}");
    alike
}

/// Everything that a configuration says about keys.
fn outcome(text: &str) -> Result<(Vec<String>, Vec<String>), Vec<String>> {
    shown(load(text, &Fake::default()))
}

fn shown(read: Result<Loaded, Invalid>) -> Result<(Vec<String>, Vec<String>), Vec<String>> {
    let shown = |problems: Vec<super::super::Problem>| -> Vec<String> {
        let mut all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        all.sort();
        all
    };
    match read {
        Err(invalid) => Err(shown(invalid.problems)),
        Ok(loaded) => {
            let keys = &loaded.snapshot.keys;
            let mut keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            keys.sort();
            Ok((keys, shown(loaded.warnings)))
        }
    }
}

proptest! {
    #![proptest_config(crate::wire::random(2_000))]

    #[test]
    fn items_that_are_alike_are_read_as_the_parser_reads_them(text in text()) {
        both(&text);
        prop_assert_eq!(outcome(&text), outcome(&whole(&text)), "{}", text);
    }
}

#[test]
fn what_is_written_alike_is_not_parsed() {
    let before = BASE.split("keys:").next().unwrap();
    for (style, alike) in [(0, 9), (3, 9), (4, 9), (6, 9), (7, 9), (14, 0), (22, 0), (28, 0)] {
        let mut text = format!("{before}keys:\n");
        for n in 0..10 {
            let hash = format!("{n:064x}");
            text += &ITEMS[style].replace("#64", &hash).replace('@', &n.to_string());
        }
        text += "teams: { t: { budgets: [ { usd: 2, per: day } ] } }\n";
        assert_eq!(both(&text), alike, "{text}");
    }
}

#[test]
fn a_problem_of_many_keys_is_told_of_each() {
    let item = "  - { id: k@, hash: sha256:#64, models: [mini], team: tx }\n";
    let mut text = BASE.replace("budgets:", "unlimited: true, metadata: { a: b }, budgets:");
    for n in [2, 3, 4, 3] {
        text += &item.replace("#64", &format!("{n:064x}")).replace('@', &n.to_string());
    }
    text += "teams: { t: { budgets: [ { usd: 2, per: day } ] } }\n";
    let invalid = bad(&text);
    let found: Vec<String> = invalid.problems.iter().map(ToString::to_string).collect();
    let first = text.lines().position(|line| line.contains("k2")).unwrap() + 1;
    let starts = [
        format!("{first}: keys[1].team: unknown team `tx`. Did you mean `t`?"),
        format!("{first}: keys[1]: no budget covers"),
        format!("{}: keys[2].team: unknown", first + 1),
        format!("{}: keys[2]: no budget", first + 1),
        format!("{}: keys[3].team: unknown", first + 2),
        format!("{}: keys[3]: no budget", first + 2),
        format!("{}: keys[4].id: duplicate id `k3`, first on line {}", first + 3, first + 1),
        format!("{}: keys[4].team: unknown", first + 3),
        format!("{}: keys[4]: no budget", first + 3),
        format!("{}: keys[4].hash: the same hash as key `k3`", first + 3),
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (found, start) in found.iter().zip(&starts) {
        assert!(found.starts_with(start), "{found}\n{start}");
    }
}

fn hash(n: usize) -> String {
    format!("sha256:{n:064x}")
}

fn list(items: &str) -> String {
    let before = BASE.split("keys:").next().unwrap();
    format!("{before}keys:\n{items}teams: {{ t: {{ budgets: [ {{ usd: 2, per: day }} ] }} }}\n")
}

#[test]
fn a_date_that_is_written_unusually_counts_for_all() {
    for date in [
        "2027-06-30T00:00:00+02:00",
        "\"2027-06-30T00:00:00.5Z\"",
        "2027-06-30t00:00:00z",
        "\"${WHEN:-2027-06-30T00:00:00Z}\"",
        "2020-06-30T00:00:00+02:00",
    ] {
        let item = |n| {
            let hash = hash(n);
            format!("  - {{ id: k{n}, hash: {hash}, models: [mini], team: t, expires: {date} }}\n")
        };
        let text = list(&(1..5).map(item).collect::<String>());
        both(&text);
        assert_eq!(outcome(&text), outcome(&whole(&text)), "{text}");
    }
}

#[test]
fn what_the_parser_does_not_read_is_not_read() {
    for between in [
        "  # a\u{0}b\n",
        "\u{0}\n",
        "# \u{0}\n",
        "# a\u{FEFF}b\n",
        "#\u{FEFF}\n",
        "# \u{85}\u{2028}\n",
        "# \u{7}\n",
    ] {
        let item = |n| format!("  - {{ id: k{n}, hash: {}, models: [mini], team: t }}\n", hash(n));
        let text = list(&format!("{}{}{between}{}", item(1), item(2), item(3)));
        both(&text);
    }
}

#[test]
fn an_item_that_goes_on_behind_its_lines_is_not_the_first_of_others() {
    let open = |n| {
        let hash = hash(n);
        format!("  - {{ id: k{n}, hash: {hash}, models: [mini], team: t, metadata: {{ a: \"\n")
    };
    let close = |n| {
        let hash = hash(n);
        format!("  - id: 'z {n}'\n    hash: {hash}\n    models: [mini]\n    team: t # \" }} }}\n")
    };
    let text = list(&format!("{}{}{}{}", open(1), close(2), open(3), close(4)));
    both(&text);
    // One that begins before them.
    let begin = "  - { metadata: { a: \"\n";
    let end =
        |n| format!("  - {{ x: \" }}, id: k{n}, hash: {}, models: [mini], team: t }}\n", hash(n));
    let text = list(&format!("{begin}{}{}{}", end(1), end(2), end(3)));
    both(&text);
}

#[test]
fn a_mark_that_is_escaped_is_none() {
    let item = |n| format!("  - {{ id: k{n}, hash: {}, models: [mini], team: t }}\n", hash(n));
    for mark in ["\\uE0F7", "\\ue0f7", "\\U0000e0F7"] {
        let id = format!("id: \"{mark}k1\", hash: \"{mark}{}\"", hash(1));
        for end in ["", &format!("\"{mark}end\", ")] {
            let (a, b, c) = (item(1), item(2), item(3));
            let keys = format!("[ {{ {id}, models: [mini] }}, {end}\"{mark}1\" ]");
            both(&format!("{{ x: '\nkeys:\n{a}{b}{c}',\n\"keys\": {keys} }}\n"));
        }
    }
}

#[test]
fn aliases_are_counted() {
    let before = BASE.split("keys:").next().unwrap();
    let mut text = format!("{before}timezone: &z UTC\nkeys:\n");
    let aliases = "*z , ".repeat(100);
    for n in 0..1_100 {
        text += &format!("  - {{ id: k{n}, hash: {}, models: [{aliases}] }}\n", hash(n));
    }
    both(&text);
}
