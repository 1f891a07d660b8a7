//! Servers of names that answer, fail and hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

type Answer = oneshot::Sender<Result<Vec<SocketAddr>>>;

const WITHIN: Duration = Duration::from_secs(5);

/// A resolver, and the lookups that it begins, which wait for their answers.
fn resolver() -> (Arc<Resolver>, UnboundedReceiver<Answer>) {
    let (asked, lookups): (UnboundedSender<Answer>, _) = unbounded_channel();
    let look_up = move |_: String, _: u16| -> Found {
        let (answer, answered) = oneshot::channel();
        asked.send(answer).unwrap();
        Box::pin(async move { answered.await.unwrap() })
    };
    (Arc::new(Resolver::with(Box::new(look_up))), lookups)
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 443))
}

fn broken() -> Result<Vec<SocketAddr>> {
    Err(Error::other("SERVFAIL"))
}

async fn ask(resolver: &Resolver, now: Instant) -> Result<SocketAddr> {
    resolver.resolve_at("api.example", 443, WITHIN, now).await
}

/// A request beside the others.
fn waiting(resolver: &Arc<Resolver>, now: Instant) -> tokio::task::JoinHandle<Result<SocketAddr>> {
    let resolver = resolver.clone();
    tokio::spawn(async move { ask(&resolver, now).await })
}

/// Lets every task run as far as it goes, and no time pass.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// One that has had this answer, at this time.
async fn knowing(last: u8, at: Instant) -> (Arc<Resolver>, UnboundedReceiver<Answer>) {
    let (resolver, mut lookups) = resolver();
    let first = waiting(&resolver, at);
    lookups.recv().await.unwrap().send(Ok(vec![address(last)])).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), address(last));
    settle().await;
    (resolver, lookups)
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn who_knows_nothing_waits_for_one_lookup_together() {
    let ((resolver, mut lookups), now) = (resolver(), Instant::now());
    let all: Vec<_> = (0..100).map(|_| waiting(&resolver, now)).collect();
    settle().await;
    let answer = lookups.recv().await.unwrap();
    assert!(lookups.try_recv().is_err(), "one is enough");
    // The one that began it may leave.
    all[0].abort();
    answer.send(Ok(vec![address(1), address(2)])).unwrap();
    let mut found = std::collections::HashSet::new();
    for one in all.into_iter().skip(1) {
        found.insert(one.await.unwrap().unwrap());
    }
    assert_eq!(found.len(), 2, "both are used");
}

#[tokio::test(start_paused = true)]
async fn a_server_of_names_that_hangs_holds_nobody_up() {
    let t = Instant::now();
    let (resolver, mut lookups) = knowing(1, t).await;
    assert_eq!(ask(&resolver, t + secs(29)).await.unwrap(), address(1));
    assert!(lookups.try_recv().is_err(), "it is fresh");
    let began = tokio::time::Instant::now();
    for n in 0..700 {
        let now = t + secs(30) + secs(n);
        assert_eq!(ask(&resolver, now).await.unwrap(), address(1));
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let answer = lookups.recv().await.unwrap();
    assert!(lookups.try_recv().is_err(), "one thread at most hangs");
    answer.send(Ok(vec![address(2)])).unwrap();
    settle().await;
    // It is as old as its question: the next one is asked at once, and not waited for.
    assert_eq!(ask(&resolver, t + secs(31)).await.unwrap(), address(2));
    assert!(lookups.try_recv().is_err());
    assert_eq!(ask(&resolver, t + secs(61)).await.unwrap(), address(2));
    settle().await;
    assert!(lookups.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_last_known_address_goes_on_being_used() {
    let t = Instant::now();
    let (resolver, mut lookups) = knowing(1, t).await;
    for (at, asks) in [(30, true), (31, false), (34, false), (35, true), (330, true)] {
        assert_eq!(ask(&resolver, t + secs(at)).await.unwrap(), address(1), "at {at} s");
        settle().await;
        match lookups.try_recv() {
            Ok(answer) if asks => answer.send(broken()).unwrap(),
            asked => assert_eq!(asked.is_ok(), asks, "at {at} s"),
        }
        settle().await;
    }
    // Then it works again.
    assert_eq!(ask(&resolver, t + secs(335)).await.unwrap(), address(1));
    lookups.recv().await.unwrap().send(Ok(vec![address(2)])).unwrap();
    settle().await;
    assert_eq!(ask(&resolver, t + secs(336)).await.unwrap(), address(2));
    // An old failure is no reason not to wait.
    assert_eq!(ask(&resolver, t + secs(366)).await.unwrap(), address(2));
    lookups.recv().await.unwrap().send(broken()).unwrap();
    settle().await;
    let late = waiting(&resolver, t + secs(9000));
    lookups.recv().await.unwrap().send(Ok(vec![address(3)])).unwrap();
    assert_eq!(late.await.unwrap().unwrap(), address(3));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_asked_for_in_minutes_is_asked_for_first() {
    let t = Instant::now();
    let (resolver, mut lookups) = knowing(1, t).await;
    let late = waiting(&resolver, t + secs(300));
    lookups.recv().await.unwrap().send(Ok(vec![address(2)])).unwrap();
    assert_eq!(late.await.unwrap().unwrap(), address(2));
    // … but not for ever, …
    let began = tokio::time::Instant::now();
    assert_eq!(ask(&resolver, t + secs(900)).await.unwrap(), address(2));
    assert_eq!(began.elapsed(), WITHIN);
    // … and not again while it hangs.
    assert_eq!(ask(&resolver, t + secs(905)).await.unwrap(), address(2));
    assert_eq!(began.elapsed(), WITHIN);
    assert!(lookups.try_recv().is_ok() && lookups.try_recv().is_err(), "one for all of them");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_resolved_is_an_error_in_time() {
    let ((resolver, mut lookups), now) = (resolver(), Instant::now());
    for _ in 0..3 {
        let began = tokio::time::Instant::now();
        assert_eq!(ask(&resolver, now).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), WITHIN);
    }
    let answer = lookups.recv().await.unwrap();
    assert!(lookups.try_recv().is_err(), "they all wait for the first");
    let both = [waiting(&resolver, now), waiting(&resolver, now)];
    settle().await;
    answer.send(broken()).unwrap();
    for one in both {
        assert_eq!(one.await.unwrap().unwrap_err().to_string(), "SERVFAIL");
    }
    // Nothing is known: the next one tries at once.
    let next = waiting(&resolver, now);
    lookups.recv().await.unwrap().send(Ok(Vec::new())).unwrap();
    assert_eq!(next.await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_system_is_asked() {
    let resolver = Resolver::default();
    let local = resolver.resolve("localhost", 80, secs(20)).await.unwrap();
    assert!(local.ip().is_loopback() && local.port() == 80, "{local}");
    let literal = resolver.resolve("192.0.2.7", 81, Duration::ZERO).await.unwrap();
    assert_eq!(literal, SocketAddr::from(([192, 0, 2, 7], 81)));
}
