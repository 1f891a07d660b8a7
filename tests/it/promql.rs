//! As much of PromQL as it takes to say which series an expression reads.

/// A metric that an expression reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    pub metric: String,
    /// Label, operator (`=`, `!=`, `=~`, `!~`) and value.
    pub matchers: Vec<(String, String, String)>,
}

/// What an expression reads, and what it groups by.
#[derive(Debug, Default, PartialEq)]
pub struct Read {
    pub selectors: Vec<Selector>,
    /// The labels in `by`, `without`, `on`, `ignoring`, `group_left` and `group_right`.
    pub grouped: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(String),
}

/// Panics at what is not PromQL as far as this can tell.
pub fn read(expression: &str) -> Read {
    let tokens = tokens(expression);
    let sign = |at: usize, what: &str| tokens.get(at) == Some(&Token::Sign(what.into()));
    let mut found = Read::default();
    let (mut at, mut open) = (0, Vec::new());
    while at < tokens.len() {
        match &tokens[at] {
            Token::Word(word) if GROUPING.contains(&word.as_str()) => {
                if sign(at + 1, "(") {
                    at += 2;
                    while !sign(at, ")") {
                        if let Some(Token::Word(label)) = tokens.get(at) {
                            found.grouped.push(label.clone());
                        }
                        at += 1;
                        assert!(at < tokens.len(), "no end of labels: {expression}");
                    }
                }
            }
            Token::Word(word) if WORDS.contains(&word.as_str()) => {}
            // A number, a duration, a function, an aggregation with its labels before its operand.
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {}
            Token::Word(_) if sign(at + 1, "(") => {}
            Token::Word(_) if matches!(tokens.get(at + 1), Some(Token::Word(w)) if w == "by" || w == "without") =>
                {}
            Token::Word(metric) => {
                let mut matchers = Vec::new();
                if sign(at + 1, "{") {
                    at += 2;
                    while !sign(at, "}") {
                        let [Token::Word(label), Token::Sign(operator), Token::Text(value)] =
                            tokens.get(at..at + 3).unwrap_or_default()
                        else {
                            panic!("no matcher at {:?}: {expression}", tokens.get(at));
                        };
                        matchers.push((label.clone(), operator.clone(), value.clone()));
                        at += 3;
                        at += usize::from(sign(at, ","));
                    }
                }
                found.selectors.push(Selector { metric: metric.clone(), matchers });
            }
            Token::Sign(bracket) if "([{".contains(bracket.as_str()) => open.push(bracket.clone()),
            Token::Sign(bracket) if ")]}".contains(bracket.as_str()) => {
                let pair = format!("{}{bracket}", open.pop().unwrap_or_default());
                assert!(["()", "[]", "{}"].contains(&pair.as_str()), "{pair}: {expression}");
            }
            Token::Sign(_) | Token::Text(_) => {}
        }
        at += 1;
    }
    assert!(open.is_empty(), "{open:?}: {expression}");
    found
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = if first == '"' {
            let end = rest[1..].find('"').expect("the end of a text") + 2;
            out.push(Token::Text(rest[1..end - 1].to_owned()));
            end
        } else if first.is_ascii_alphanumeric() || "_:$".contains(first) {
            let word = |c: char| !(c.is_ascii_alphanumeric() || "_:$.".contains(c));
            let end = rest.find(word).unwrap_or(rest.len());
            // Grafana's own intervals stand where a duration does.
            let shown = if first == '$' { "0s" } else { &rest[..end] };
            out.push(Token::Word(shown.to_owned()));
            end
        } else {
            let two = ["=~", "!~", "!=", "==", ">=", "<="];
            let long = two.iter().any(|sign| rest.starts_with(sign));
            let end = if long { 2 } else { first.len_utf8() };
            out.push(Token::Sign(rest[..end].to_owned()));
            end
        };
        rest = rest[taken..].trim_start();
    }
    out
}

/// Whether a regular expression of alternatives, characters and `.` matches all of a text.
pub fn matches(pattern: &str, text: &str) -> bool {
    pattern.split('|').any(|alternative| {
        let plain = alternative.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        assert!(plain, "more of a pattern than this understands: {pattern}");
        alternative.chars().count() == text.chars().count()
            && alternative.chars().zip(text.chars()).all(|(p, t)| p == '.' || p == t)
    })
}

#[test]
fn it_reads_what_rules_are_made_of() {
    let found = read(
        r#"histogram_quantile(0.99, sum by (le, a) (rate(x_bucket{code=~"5..", b!="c"}[5m])))
           / on (d) group_left sum(y:z) without (e) > 1e3 and z offset 5m unless max(w) by (f)"#,
    );
    let names: Vec<_> = found.selectors.iter().map(|s| s.metric.as_str()).collect();
    assert_eq!(names, ["x_bucket", "y:z", "z", "w"]);
    let matcher = |l: &str, o: &str, v: &str| (l.to_owned(), o.to_owned(), v.to_owned());
    assert_eq!(
        found.selectors[0].matchers,
        [matcher("code", "=~", "5.."), matcher("b", "!=", "c")]
    );
    assert_eq!(found.grouped, ["le", "a", "d", "e", "f"]);
    let grafana = read(r#"rate(x{instance=~"$instance"}[$__rate_interval])"#);
    assert_eq!(grafana.selectors[0].matchers[0].2, "$instance");
    assert!(matches("ok|5..", "503") && matches("ok|5..", "ok") && !matches("ok|5..", "o"));
    assert!(std::panic::catch_unwind(|| read("sum(x")).is_err());
    assert!(std::panic::catch_unwind(|| read("x{a=b}")).is_err());
}
