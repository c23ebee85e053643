//! What a service did is what its spans say: for each gRPC library, each call
//! is compared with what client and server wrote down themselves. None may be
//! missing, invented or wrong.

use anyhow::Result;
use tracewire_tests::session::{Session, Sides};
use tracewire_tests::workload::{Language, Load};
use tracewire_tests::{alone, full};

/// Ordinary calls of all kinds.
fn ordinary(concurrency: u32, connections: u32) -> Vec<Load> {
    let at = |scenario, calls| {
        Load::new(scenario, calls * more())
            .at_once(concurrency)
            .over(connections)
    };
    vec![
        at("unary", 40),
        // Every code twice, once in the shade of names that are known already.
        at("errors", 34),
        at("server-stream", 24),
        at("client-stream", 24),
        at("bidi", 24),
        at("mixed", 50),
    ]
}

/// Calls that are large or short-lived.
fn odd(concurrency: u32, connections: u32) -> Vec<Load> {
    let at = |scenario, calls| {
        Load::new(scenario, calls * more())
            .at_once(concurrency)
            .over(connections)
    };
    vec![
        at("large", 6).at_once(concurrency.min(4)),
        at("metadata", 20),
        at("churn", 20).at_once(concurrency.min(4)),
    ]
}

/// Calls that are given up.
fn given_up(concurrency: u32, connections: u32) -> Vec<Load> {
    let at = |scenario| Load::new(scenario, 17 * more()).at_once(concurrency).over(connections);
    vec![at("cancel"), at("deadline")]
}

fn more() -> u32 {
    if full() { 5 } else { 1 }
}

fn check(server: Language, client: Language, loads: &[Load]) -> Result<()> {
    Session::run(server, client, loads)?.assert_true(Sides::Both);
    Ok(())
}

fn one_at_a_time(language: Language) -> Result<()> {
    let _turn = alone()?;
    check(language, language, &ordinary(1, 1))?;
    check(language, language, &odd(1, 1))
}

fn sixteen_at_once(language: Language) -> Result<()> {
    let _turn = alone()?;
    check(language, language, &ordinary(16, 3))?;
    check(language, language, &odd(16, 3))
}

fn a_hundred_at_once(language: Language) -> Result<()> {
    let _turn = alone()?;
    check(
        language,
        language,
        &[Load::new("mixed", 1000 * more()).at_once(100).over(4)],
    )
}

macro_rules! languages {
    ($($name:ident: $language:ident),* $(,)?) => {$(
        mod $name {
            use super::*;

            #[test]
            fn calls_one_at_a_time_are_told_as_they_were() -> Result<()> {
                one_at_a_time(Language::$language)
            }

            #[test]
            fn sixteen_calls_at_once_are_told_as_they_were() -> Result<()> {
                sixteen_at_once(Language::$language)
            }
        }
    )*};
}

languages! {
    go: Go,
    python: Python,
    python_aio: PythonAio,
    node: Node,
    java: Java,
    cpp: Cpp,
    rust: Rust,
}

/// Calls that are given up: what the wire certainly says. `compare::STATUS` lists where a library's
/// own account differs from it.
fn gives_up(language: Language) -> Result<()> {
    let _turn = alone()?;
    check(language, language, &given_up(1, 1))
}

macro_rules! given_up {
    ($($name:ident: $language:ident),* $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            gives_up(Language::$language)
        }
    )*};
}

given_up! {
    calls_given_up_in_python_are_told_as_the_wire_has_them: Python,
    calls_given_up_in_asyncio_are_told_as_the_wire_has_them: PythonAio,
    calls_given_up_in_node_are_told_as_the_wire_has_them: Node,
    calls_given_up_in_java_are_told_as_the_wire_has_them: Java,
    calls_given_up_in_cpp_are_told_as_the_wire_has_them: Cpp,
    calls_given_up_in_rust_are_told_as_the_wire_has_them: Rust,
}

#[test]
fn calls_given_up_in_go_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    check(Language::Go, Language::Go, &given_up(1, 1))?;
    check(Language::Go, Language::Go, &given_up(16, 3))
}

/// The tests of each language that take long; those that are not `#[ignore]`d are the short form.
/// `cargo xtask test --long` runs them all.
macro_rules! many {
    ($($(#[$attribute:meta])* $name:ident: $language:ident),* $(,)?) => {$(
        mod $name {
            use super::*;

            #[test]
            $(#[$attribute])*
            fn a_hundred_calls_at_once_are_told_as_they_were() -> Result<()> {
                a_hundred_at_once(Language::$language)
            }

            #[test]
            $(#[$attribute])*
            fn a_thousand_calls_on_one_connection_are_told_as_they_were() -> Result<()> {
                let _turn = alone()?;
                check(Language::$language, Language::$language, &[Load::new("unary", 1000)])
            }

            #[test]
            $(#[$attribute])*
            fn two_hundred_connections_of_one_call_each_are_told_as_they_were() -> Result<()> {
                let _turn = alone()?;
                check(Language::$language, Language::$language, &[Load::new("unary", 200).over(200)])
            }
        }
    )*};
}

many! {
    many_in_go: Go,
    #[ignore = "long form"]
    many_in_python: Python,
    #[ignore = "long form"]
    many_in_asyncio: PythonAio,
    #[ignore = "long form"]
    many_in_node: Node,
    #[ignore = "long form"]
    many_in_java: Java,
    #[ignore = "long form"]
    many_in_cpp: Cpp,
    #[ignore = "long form"]
    many_in_rust: Rust,
}

#[test]
fn a_hundred_calls_at_once_in_python_are_told_as_they_were() -> Result<()> {
    a_hundred_at_once(Language::Python)
}

#[test]
fn a_hundred_calls_at_once_in_rust_are_told_as_they_were() -> Result<()> {
    a_hundred_at_once(Language::Rust)
}

#[test]
fn services_in_different_languages_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    let pairs: Vec<(Language, Language)> = if full() {
        let all = Language::ALL.into_iter();
        all.flat_map(|a| Language::ALL.into_iter().filter(move |b| *b != a).map(move |b| (a, b)))
            .collect()
    } else {
        vec![
            (Language::Go, Language::Java),
            (Language::Java, Language::Python),
            (Language::Python, Language::Rust),
            (Language::Rust, Language::Node),
            (Language::Node, Language::Cpp),
            (Language::Cpp, Language::PythonAio),
            (Language::PythonAio, Language::Go),
        ]
    };
    for (server, client) in pairs {
        let mixed = Load::new("mixed", 60).at_once(8).over(2);
        check(
            server,
            client,
            &[mixed, Load::new("metadata", 10), Load::new("churn", 10)],
        )?;
    }
    Ok(())
}

#[test]
fn one_side_alone_is_told_as_it_was() -> Result<()> {
    let _turn = alone()?;
    for sides in [Sides::Clients, Sides::Server] {
        let loads = [Load::new("mixed", 60).at_once(8).over(2), Load::new("errors", 34)];
        Session::run_on(Language::Go, Language::Go, &loads, None, sides)?.assert_true(sides);
    }
    Ok(())
}
