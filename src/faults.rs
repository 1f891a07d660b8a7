//! Faults on demand, for the tests of what survives them. In a release build there are none.
//!
//! `TOLLBAR_TEST_PANICS=relay:0.05,settle:0.02` makes one in twenty passes of the point `relay`
//! panic, and one in fifty of `settle`.

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;

    /// Each point that panics, and how often: between 0 and 1.
    fn points() -> &'static [(String, f64)] {
        static POINTS: OnceLock<Vec<(String, f64)>> = OnceLock::new();
        POINTS.get_or_init(|| {
            let asked = std::env::var("TOLLBAR_TEST_PANICS").unwrap_or_default();
            let pairs = asked.split(',').filter_map(|pair| pair.split_once(':'));
            pairs.filter_map(|(name, often)| Some((name.to_owned(), often.parse().ok()?))).collect()
        })
    }

    /// A place where a bug could be.
    #[allow(clippy::panic)] // what it is for
    pub fn point(name: &str) {
        let often = points().iter().find(|(known, _)| known == name).map(|(_, often)| *often);
        if often.is_some_and(|often| rand::random::<f64>() < often) {
            panic!("injected at {name}");
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::point;

/// A place where a bug could be.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) {}
