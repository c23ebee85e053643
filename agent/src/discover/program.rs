//! The name of what a process runs: its executable, or, where that is an
//! interpreter, what it interprets. Reads the command line and gives back one
//! word of it at most, since arguments may hold secrets.

use std::path::Path;

/// What an executable is known to interpret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// CPython
    Python,
    /// PyPy
    Pypy,
    /// Node.js
    Node,
    /// Deno
    Deno,
    /// Bun
    Bun,
    /// A Java virtual machine
    Java,
    /// Ruby
    Ruby,
    /// Perl
    Perl,
    /// PHP
    Php,
    /// .NET's host
    Dotnet,
}

impl Runtime {
    /// By the executable's file name, versions and suffixes allowed (`python3.12`, `ruby3.1`).
    pub fn of(executable: &str) -> Option<Runtime> {
        let stem = executable.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
        Some(match stem {
            "python" => Runtime::Python,
            "pypy" => Runtime::Pypy,
            "node" | "nodejs" => Runtime::Node,
            "deno" => Runtime::Deno,
            "bun" => Runtime::Bun,
            "java" => Runtime::Java,
            "ruby" => Runtime::Ruby,
            "perl" => Runtime::Perl,
            "php" | "php-fpm" => Runtime::Php,
            "dotnet" => Runtime::Dotnet,
            _ => return None,
        })
    }

    /// `process.runtime.name`, where the executable alone tells it.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Runtime::Python => "cpython",
            Runtime::Pypy => "pypy",
            Runtime::Node => "nodejs",
            Runtime::Deno => "deno",
            Runtime::Bun => "bun",
            Runtime::Ruby => "ruby",
            Runtime::Dotnet => ".NET",
            Runtime::Java | Runtime::Perl | Runtime::Php => return None,
        })
    }

    /// Options whose value is an argument of its own.
    fn takes_value(self, option: &str) -> bool {
        match self {
            Runtime::Python | Runtime::Pypy => matches!(option, "-W" | "-X" | "--check-hash-based-pycs"),
            Runtime::Node | Runtime::Bun | Runtime::Deno => matches!(
                option,
                "-r" | "--require"
                    | "--import"
                    | "--loader"
                    | "--experimental-loader"
                    | "--env-file"
                    | "-C"
                    | "--conditions"
                    | "--inspect-port"
                    | "--title"
                    | "--preload"
                    | "--config"
                    | "-c"
            ),
            Runtime::Java => matches!(
                option,
                "-cp"
                    | "-classpath"
                    | "--class-path"
                    | "-p"
                    | "--module-path"
                    | "--add-modules"
                    | "--add-opens"
                    | "--add-exports"
                    | "--add-reads"
                    | "--upgrade-module-path"
                    | "--patch-module"
                    | "--limit-modules"
            ),
            Runtime::Ruby => matches!(option, "-r" | "-I" | "-C" | "-E" | "-K"),
            Runtime::Perl => matches!(option, "-I"),
            Runtime::Php => matches!(option, "-d" | "-c" | "-z" | "-t"),
            Runtime::Dotnet => matches!(
                option,
                "--additionalprobingpath" | "--depsfile" | "--runtimeconfig" | "--fx-version"
            ),
        }
    }

    /// Options that give the program itself as text: it has no name.
    fn is_inline(self, option: &str) -> bool {
        match self {
            Runtime::Python | Runtime::Pypy => option == "-c",
            Runtime::Node | Runtime::Bun | Runtime::Deno => matches!(option, "-e" | "--eval" | "-p" | "--print"),
            Runtime::Ruby | Runtime::Perl => option == "-e" || option == "-E",
            Runtime::Php => option == "-r" || option == "-S",
            Runtime::Java | Runtime::Dotnet => false,
        }
    }
}

/// Programs that only run another one, which their arguments name as `package.module:object`.
const LAUNCHERS: [&str; 8] = [
    "uvicorn",
    "gunicorn",
    "hypercorn",
    "daphne",
    "granian",
    "waitress-serve",
    "uwsgi",
    "opentelemetry-instrument",
];

/// Names of files and directories that say nothing of the program.
const EMPTY_NAMES: [&str; 11] = [
    "index", "__main__", "dist", "build", "src", "lib", "bin", "out", "target", "app.asar", "current",
];

/// The program's name, by its arguments (`argv[0]` first) and its working
/// directory; `None` if it has none of its own.
pub fn interpreted(runtime: Runtime, arguments: &[&str], directory: Option<&Path>) -> Option<String> {
    let mut rest = arguments.iter().skip(1).copied();
    while let Some(argument) = rest.next() {
        if runtime.is_inline(argument) {
            return None;
        }
        match (runtime, argument) {
            (Runtime::Python | Runtime::Pypy, "-m") => {
                let module = rest.next()?;
                return launched(module, rest).or_else(|| named(module.trim_end_matches(".__main__")));
            }
            (Runtime::Java, "-jar") => return named(unversioned(&stem(rest.next()?)?)),
            (Runtime::Java, "-m" | "--module") => return named(rest.next()?.split('/').next()?),
            (Runtime::Deno | Runtime::Bun, "run" | "start" | "serve") => continue,
            (Runtime::Dotnet, "exec") => continue,
            (Runtime::Java, _) if argument.starts_with('@') => continue,
            _ => {}
        }
        if argument.starts_with('-') {
            if runtime.takes_value(argument) {
                rest.next();
            }
            continue;
        }
        return match runtime {
            Runtime::Java => named(argument),
            _ => {
                let script = stem(argument)?;
                launched(&script, rest).or_else(|| described(argument, &script, directory))
            }
        };
    }
    None
}

/// What a launcher launches: `gunicorn -w 4 shop.wsgi:app` → `shop.wsgi`.
fn launched<'a>(launcher: &str, rest: impl Iterator<Item = &'a str>) -> Option<String> {
    if !LAUNCHERS.contains(&launcher) {
        return None;
    }
    rest.filter(|argument| !argument.starts_with('-')).find_map(|argument| {
        let (module, object) = argument.split_once(':')?;
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'(' | b')'))
        };
        let is_name = plain(module) && plain(object) && !object.bytes().all(|b| b.is_ascii_digit());
        is_name.then(|| named(module)).flatten()
    })
}

/// A script by its name, or by its directory's where the name says nothing (`shop/index.js` → `shop`).
fn described(path: &str, script: &str, directory: Option<&Path>) -> Option<String> {
    if !EMPTY_NAMES.contains(&script) {
        return named(script);
    }
    let whole = directory.map_or_else(|| Path::new(path).to_path_buf(), |directory| directory.join(path));
    whole
        .ancestors()
        .skip(1)
        .filter_map(|directory| directory.file_name()?.to_str())
        .find(|name| !EMPTY_NAMES.contains(name) && *name != "." && *name != "..")
        .and_then(named)
        .or_else(|| named(script))
}

/// A file's name without its extension.
fn stem(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let stem = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 5 => stem,
        _ => name,
    };
    Some(stem.to_owned())
}

/// `shop-api-1.2.3-SNAPSHOT` → `shop-api`.
fn unversioned(name: &str) -> &str {
    let mut from = 0;
    while let Some(at) = name.get(from..).and_then(|rest| rest.find('-')) {
        let at = from + at;
        if name.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit) {
            return name.get(..at).filter(|stem| !stem.is_empty()).unwrap_or(name);
        }
        from = at + 1;
    }
    name
}

/// Text that can be a name: what is long or odd may be anything, so it is none.
fn named(text: &str) -> Option<String> {
    let fits = !text.is_empty()
        && text.len() <= 128
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'+' | b'$'));
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_of_programs() {
        for (command, expected) in [
            ("python app.py", Some("app")),
            (
                "python3.12 -u -W ignore /srv/shop/server.py --token abc",
                Some("server"),
            ),
            ("python3 -m http.server 8000", Some("http.server")),
            ("python3 -m shop", Some("shop")),
            ("python3 -m uvicorn shop.main:app --port 80", Some("shop.main")),
            (
                "python3 /usr/bin/gunicorn -w 4 -b 0.0.0.0:8000 shop.wsgi:app",
                Some("shop.wsgi"),
            ),
            ("python3 /usr/bin/gunicorn", Some("gunicorn")),
            ("python3 -c print(1)", None),
            ("python3", None),
            ("python3 /opt/shop/__main__.py", Some("shop")),
            ("node server.js", Some("server")),
            (
                "node --require ./trace.js --max-old-space-size=512 /srv/shop/dist/index.js",
                Some("shop"),
            ),
            ("node index.js", Some("cart")),
            ("node -e 1", None),
            ("deno run --allow-net main.ts", Some("main")),
            ("bun run serve.ts", Some("serve")),
            (
                "java -Xmx1g -jar /srv/shop-api-1.2.3-SNAPSHOT.jar --password=x",
                Some("shop-api"),
            ),
            ("java -jar x-1.2.jar", Some("x")),
            (
                "java -cp lib/* -Dkey=secret com.acme.shop.Main arg",
                Some("com.acme.shop.Main"),
            ),
            ("java --module-path mods -m acme.shop/acme.shop.Main", Some("acme.shop")),
            ("ruby -I lib bin/worker.rb", Some("worker")),
            ("php -d x=1 artisan serve", Some("artisan")),
            ("dotnet /app/Shop.Api.dll", Some("Shop.Api")),
            ("dotnet exec --runtimeconfig x.json Shop.dll", Some("Shop")),
            ("perl daemon.pl", Some("daemon")),
            ("python3 /srv/näme.py", None),
        ] {
            let arguments: Vec<&str> = command.split(' ').collect();
            let runtime = Runtime::of(arguments.first().unwrap()).unwrap();
            let name = interpreted(runtime, &arguments, Some(Path::new("/srv/cart")));
            assert_eq!(name.as_deref(), expected, "{command}");
        }
    }

    #[test]
    fn ordinary_executables_are_no_runtimes() {
        for name in ["nginx", "nodeinfo", "javac", "greeter", "python-greeter", "rubymine"] {
            assert_eq!(Runtime::of(name), None, "{name}");
        }
        assert_eq!(Runtime::of("ruby3.1"), Some(Runtime::Ruby));
        assert_eq!(Runtime::of("php-fpm8.2"), Some(Runtime::Php));
    }
}
