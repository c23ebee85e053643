//! The corpus, in every place of a text.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use proptest::prelude::*;

use super::corpus::{DRAWN, EXACT, HARMLESS, PHRASES};
use super::*;

#[test]
fn what_has_the_form_of_a_secret_is_hidden_wherever_it_stands() {
    let policy = Policy::default();
    for secret in EXACT {
        for text in [
            (*secret).to_owned(),
            format!("no access for {secret}"),
            format!("user '{secret}' is locked"),
            format!("({secret}), again"),
            format!("id={secret}&x=1"),
            format!("/accounts/{secret}/orders"),
        ] {
            for scrubbed in [policy.exact(&text), policy.free(&text)] {
                assert!(!scrubbed.contains(secret), "{text} → {scrubbed}");
                assert!(scrubbed.contains(REDACTED));
            }
        }
    }
}

#[test]
fn what_looks_drawn_is_hidden_in_free_text() {
    for secret in DRAWN {
        let text = format!("bad key {secret}, try again");
        assert_eq!(Policy::default().free(&text), "bad key REDACTED, try again");
    }
}

#[test]
fn what_a_word_announces_is_hidden() {
    for (text, secret) in PHRASES {
        let scrubbed = Policy::default().exact(text);
        assert!(!scrubbed.contains(secret), "{text} → {scrubbed}");
    }
}

#[test]
fn what_is_harmless_stays_word_by_word_and_is_not_copied() {
    for text in HARMLESS {
        for scrubbed in [Policy::default().exact(text), Policy::default().free(text)] {
            assert_eq!(scrubbed, *text);
            assert!(matches!(scrubbed, Cow::Borrowed(_)));
        }
    }
}

#[test]
fn queries_are_off_and_redacted_when_on() {
    let query = "page=2&q=blue+shoes&X-Amz-Signature=abc&sig=abc&access_token=abc&user=a%40b.com&AKIAIOSFODNN7EXAMPLE";
    assert_eq!(Policy::default().query(query), None);
    let on = Policy {
        query: Query::Redacted,
        ..Policy::default()
    };
    assert_eq!(
        on.query(query).unwrap(),
        "page=2&q=blue+shoes&X-Amz-Signature=REDACTED&sig=REDACTED&access_token=REDACTED&user=REDACTED&REDACTED"
    );
    for secret in EXACT.iter().chain(DRAWN) {
        let query = format!("a=1&b={secret}&c=3");
        assert_eq!(on.query(&query).unwrap(), "a=1&b=REDACTED&c=3");
    }
}

#[test]
fn patterns_of_the_user_hide_more() {
    let policy = Policy {
        query: Query::Redacted,
        patterns: Arc::new([Regex::new("(?i)acct-[0-9]+").unwrap()]),
    };
    assert_eq!(policy.exact("no ACCT-17 here"), "no REDACTED here");
    assert_eq!(policy.own_shared(&"/a/acct-9".into()), "/a/REDACTED".into());
    assert_eq!(policy.query("id=acct-9").unwrap(), "id=REDACTED");
}

#[test]
fn credentials_that_were_asked_for_still_do_not_show() {
    let policy = Policy::default();
    assert_eq!(&*policy.field("Authorization", &"Bearer x".into()), REDACTED);
    assert_eq!(&*policy.field("cookie", &"a=b".into()), REDACTED);
    assert_eq!(
        &*policy.field("x-tenant", &"q7Zk2Lx9Vb4Nn8Rt1Yw6".into()),
        "q7Zk2Lx9Vb4Nn8Rt1Yw6"
    );
    assert_eq!(&*policy.field("x-user", &"alice@example.com".into()), REDACTED);
}

proptest! {
    #[test]
    fn any_text_is_taken_and_scrubbing_again_changes_nothing(text in "\\PC{0,80}") {
        let policy = Policy::default();
        let once = policy.free(&text).into_owned();
        prop_assert_eq!(&*policy.free(&once), &*once);
    }

    #[test]
    fn a_secret_among_any_words_is_hidden(
        before in "[a-z ,:;()]{0,20}",
        after in "[ ,;()\"'][a-z ]{0,20}",
        which in 0..EXACT.len(),
    ) {
        let secret = EXACT[which];
        let text = format!("{before} {secret}{after}");
        let scrubbed = Policy::default().free(&text).into_owned();
        prop_assert!(!scrubbed.contains(secret), "{} → {}", text, scrubbed);
    }
}
