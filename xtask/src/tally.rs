//! Counts tests by what the test programs print, and keeps the names of what
//! failed.

/// Passed, failed and skipped so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and stages that failed without a test that did.
    pub failed: u64,
    /// Tests that were ignored, and checks that were left out.
    pub skipped: u64,
    /// What failed, for the reader.
    pub failures: Vec<String>,
}

impl Tally {
    /// Takes a line of a test program's output: the `test result:` line counts,
    /// a `test NAME ... FAILED` line names a failure.
    pub fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let (_, counts) = result.split_once(". ").unwrap_or_default();
            for count in counts.split("; ") {
                let (number, word) = count.split_once(' ').unwrap_or_default();
                let number: u64 = number.parse().unwrap_or(0);
                match word {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.skipped += number,
                    _ => {}
                }
            }
        } else if line.starts_with("skipped: ") {
            // A test that passed without the part that it needs, which could not be had.
            self.skipped += 1;
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }

    /// A stage failed otherwise than by a test.
    pub fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// The closing line.
    pub fn closing(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up_and_failures_have_names() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.31s",
            "test result: nonsense",
            "skipped: bugsink can't be installed",
        ] {
            tally.line(line);
        }
        assert_eq!(tally.closing(), "13 passed, 1 failed, 2 skipped");
        assert_eq!(tally.failures, ["a::c"]);
    }
}
