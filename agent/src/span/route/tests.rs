//! Behaviour of route naming as a user sees it in span names.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn name(routes: &mut Routes, path: &str) -> String {
    routes
        .name(1, "GET", path)
        .template
        .map_or_else(|| "-".into(), |t| t.to_string())
}

fn params(named: &Named) -> String {
    named
        .params
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join("&")
}

#[test]
fn values_are_known_by_their_looks_at_once() {
    let mut routes = Routes::new(Config::default());
    for (path, template) in [
        ("/", "/"),
        ("/users", "/users"),
        ("/users/", "/users"),
        ("//users///42", "/users/{user_id}"),
        ("/users/42", "/users/{user_id}"),
        (
            "/users/550e8400-e29b-41d4-a716-446655440000/orders/7",
            "/users/{user_id}/orders/{order_id}",
        ),
        ("/api/v1/users/42", "/api/v1/users/{user_id}"),
        ("/v2/42", "/v2/{id}"),
        ("/reports/2024-01-31", "/reports/{report_id}"),
        ("/jobs/17:cancel", "/jobs/{job_id}:cancel"),
        ("/users;jsessionid=4F2A/42", "/users/{user_id}"),
        ("/accounts/alice@example.com", "/accounts/{account_id}"),
        ("/a/1/2", "/a/{a_id}/{a_id_2}"),
    ] {
        assert_eq!(name(&mut routes, path), template, "{path}");
    }
}

#[test]
fn private_values_are_redacted_and_others_shown() {
    let mut routes = Routes::new(Config::default());
    for (path, shown, values) in [
        ("/users/42", None, "user_id=42"),
        (
            "/users/alice%40example.com/orders/7",
            Some("/users/REDACTED/orders/7"),
            "user_id=REDACTED&order_id=7",
        ),
        (
            "/files/sk_live_4eC39HqLyjWDarjtT1zdp7dc",
            Some("/files/REDACTED"),
            "file_id=REDACTED",
        ),
        (
            "/password-reset/550e8400-e29b-41d4-a716-446655440000",
            Some("/password-reset/REDACTED"),
            "password_reset_id=REDACTED",
        ),
        (
            "/cart;jsessionid=4F2A/items/3",
            Some("/cart;jsessionid=REDACTED/items/3"),
            "item_id=3",
        ),
        (
            "/posts/how-to-write-rust-like-a-pro",
            None,
            "post_id=how-to-write-rust-like-a-pro",
        ),
    ] {
        let named = routes.name(1, "GET", path);
        assert_eq!((named.path.as_deref(), &*params(&named)), (shown, values), "{path}");
    }
}

#[test]
fn words_that_vary_become_a_parameter_and_stay_one() {
    let mut routes = Routes::new(Config::default());
    let people: Vec<String> = (0..60u8)
        .map(|i| {
            format!(
                "/people/{}{}",
                char::from(b'a' + i % 26),
                "xy".repeat(usize::from(i / 26) + 1)
            )
        })
        .collect();
    let mut names = std::collections::BTreeSet::new();
    for path in people.iter().chain(&people) {
        names.insert(name(&mut routes, path));
    }
    assert!(names.len() < 16, "{names:?}");
    for path in &people {
        assert_eq!(name(&mut routes, path), "/people/{people_id}");
    }
    assert_eq!(
        name(&mut routes, "/people/search"),
        "/people/search",
        "a word of every API stays a word"
    );
    assert_eq!(name(&mut routes, "/people"), "/people");
}

#[test]
fn what_stands_below_is_kept_when_words_become_a_parameter() {
    let mut routes = Routes::new(Config::default());
    let word = |i: usize| {
        [
            "amber", "basil", "cedar", "dill", "elder", "fennel", "ginger", "hazel", "iris", "juniper", "kale",
            "lemon", "maple", "nettle", "olive", "poppy",
        ][i % 16]
    };
    for i in 0..64 {
        for below in ["issues", "pulls", "wiki"] {
            name(
                &mut routes,
                &format!("/repos/{}/{}-{}/{below}/{i}", word(i), word(i + 3), word(i * 7)),
            );
        }
    }
    assert_eq!(
        name(&mut routes, "/repos/acme/rocket/issues/7"),
        "/repos/{repo_id}/{repo_id_2}/issues/{issue_id}"
    );
    assert_eq!(
        name(&mut routes, "/repos/acme/rocket/pulls/7"),
        "/repos/{repo_id}/{repo_id_2}/pulls/{pull_id}"
    );
}

#[test]
fn many_resources_under_a_prefix_stay_apart() {
    let mut routes = Routes::new(Config::default());
    let resource = |i: usize| {
        format!(
            "{}{}s",
            ["account", "charge", "dispute", "payout", "plan"][i % 5],
            ["", "link", "note", "line", "rule", "code", "file", "mark"][i / 5]
        )
    };
    for round in 0..20 {
        for i in 0..40 {
            name(&mut routes, &format!("/v1/{}/{round}", resource(i)));
        }
    }
    for i in 0..40 {
        assert!(name(&mut routes, &format!("/v1/{}/7", resource(i))).starts_with(&format!("/v1/{}/", resource(i))));
    }
}

#[test]
fn patterns_go_first_and_the_most_exact_wins() {
    let config = Config {
        mode: Mode::Strict,
        patterns: ["/*all", "/users/{id}", "/users/me", "/files/*rest"]
            .iter()
            .map(|p| p.parse().unwrap())
            .collect(),
    };
    let mut routes = Routes::new(config);
    assert_eq!(name(&mut routes, "/users/me"), "/users/me");
    assert_eq!(name(&mut routes, "/users/bob"), "/users/{id}");
    assert_eq!(name(&mut routes, "/files/a/b"), "/files/*rest");
    assert_eq!(name(&mut routes, "/other/a/b"), "/*all");
}

#[test]
fn strict_mode_names_nothing_by_itself() {
    let mut routes = Routes::new(Config {
        mode: Mode::Strict,
        patterns: vec!["/users/{id}".parse().unwrap()],
    });
    assert_eq!(name(&mut routes, "/users/7"), "/users/{id}");
    assert_eq!(name(&mut routes, "/orders/7"), "-");
    assert_eq!(
        routes.name(1, "GET", "/mail/a@b.example").path.as_deref(),
        Some("/mail/REDACTED")
    );
}

#[test]
fn what_was_not_found_teaches_nothing() {
    let mut routes = Routes::new(Config::default());
    assert_eq!(routes.recall(1, "GET", "/wp-admin/setup.php").template, None);
    name(&mut routes, "/users/42");
    assert_eq!(
        routes.recall(1, "GET", "/users/43").template.as_deref(),
        Some("/users/{user_id}")
    );
    assert_eq!(
        routes.recall(1, "GET", "/users").template,
        None,
        "nothing ever ended there"
    );
    assert_eq!(routes.recall(1, "GET", "/users/43/secrets").template, None);
}

#[test]
fn services_learn_apart() {
    let mut routes = Routes::new(Config::default());
    for i in 0..100 {
        routes.name(
            1,
            "GET",
            &format!("/x/{}", "ab".repeat(i % 10 + 1) + &"c".repeat(i / 10)),
        );
    }
    assert_eq!(routes.name(1, "GET", "/x/word").template.as_deref(), Some("/x/{x_id}"));
    assert_eq!(routes.name(2, "GET", "/x/word").template.as_deref(), Some("/x/word"));
}

#[test]
fn memory_and_names_are_bounded_whatever_comes() {
    let mut routes = Routes::new(Config::default());
    let mut state = 7u64;
    let mut names = std::collections::HashSet::new();
    for _ in 0..50_000 {
        let mut path = String::new();
        for _ in 0..4 {
            path.push('/');
            for _ in 0..6 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                path.push(char::from(b'a' + (state >> 40) as u8 % 26));
            }
        }
        names.insert(name(&mut routes, &path));
    }
    assert!(names.len() < 3000, "{}", names.len());
    assert!(routes.nodes < trie::NODE_LIMIT + 64, "{}", routes.nodes);
    for service in 0..2 * SERVICE_LIMIT as u64 {
        routes.name(service, "GET", "/a");
    }
    assert!(routes.services.len() <= SERVICE_LIMIT);
    assert_eq!(name(&mut routes, &"/x".repeat(40)), "-");
}

proptest::proptest! {
    #[test]
    fn any_path_is_named_or_not_but_never_panics(paths in proptest::collection::vec("[ -~é/;:%@]{0,60}", 1..40)) {
        let mut routes = Routes::new(Config::default());
        for path in &paths {
            let named = routes.name(1, "GET", path);
            let again = routes.recall(1, "GET", path);
            proptest::prop_assert_eq!(named.path, again.path);
        }
    }
}
