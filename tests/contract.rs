//! The README and `docs/` say what is true: promises name tests that exist, every kernel has its line, links lead to files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the table of promises, without its head.
fn promises(contract: &str) -> Vec<Vec<&str>> {
    let table = contract.split_once("<!-- contract -->").and_then(|(_, rest)| rest.split_once("<!-- /contract -->"));
    let (table, _) = table.expect("there is no contract");
    table
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The words between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether a test file has a test of that name: a function with the attribute, or one that `on_devices!` makes tests of.
fn has_test(source: &str, name: &str) -> bool {
    let function = |line: &str| {
        let rest = line.trim_start().strip_prefix("fn ").and_then(|rest| rest.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with(['(', '<']))
    };
    let lines: Vec<&str> = source.lines().collect();
    let attributes = |at: usize| lines[..at].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
    let plain = (0..lines.len()).any(|at| function(lines[at]) && attributes(at).any(|line| line.trim() == "#[test]"));
    let on_devices = source.split("on_devices!(").skip(1).filter_map(|rest| rest.split_once(')'));
    plain
        || on_devices.into_iter().any(|(list, _)| list.split(',').any(|entry| entry.trim() == name))
            && lines.iter().any(|line| function(line))
}

#[test]
fn every_promise_names_tests_that_exist() {
    let contract = read("docs/contract.md");
    let promises = promises(&contract);
    assert!(promises.len() >= 10, "{} promises", promises.len());
    let mut missing = Vec::new();
    for row in &promises {
        let [promise, tests, result, place] = row[..] else { panic!("{row:?} has not four cells") };
        assert!(!promise.is_empty() && !result.is_empty() && !place.is_empty(), "{row:?}");
        assert!(quoted(tests).next().is_some(), "no test would fail without: {promise}");
        for test in quoted(tests) {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test} is not file::test"));
            if !has_test(&read(file), name) {
                missing.push(format!("{test}, for: {promise}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

#[test]
fn every_kernel_is_in_the_table() {
    let readme = read("README.md");
    let listed: BTreeSet<&str> = readme
        .lines()
        .filter(|line| line.contains("](cuda/") && line.starts_with("| [`"))
        .map(|line| {
            let name = quoted(line).next().unwrap();
            assert!(line.contains(&format!("](cuda/{name}.cu)")), "{name}: no link to its source");
            name
        })
        .collect();
    let kernels = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels")).unwrap();
    let kernels: BTreeSet<String> =
        kernels.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(kernels.iter().map(String::as_str).filter(|&name| name != "mod").eq(listed));
}

/// The targets of a page's links.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link)
}

#[test]
fn every_link_leads_to_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|file| file.unwrap().path());
    for page in docs.chain([root.join("README.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text).filter(|link| !link.contains("://")) {
            assert!(page.parent().unwrap().join(link).exists(), "{}: {link}", page.display());
        }
    }
}

/// Who reads the README is not to scroll.
#[test]
fn the_readme_is_short_and_its_links_are_in_the_package() {
    let readme = read("README.md");
    assert!(readme.len() <= 12 * 1024, "{} bytes", readme.len());
    let manifest = read("Cargo.toml");
    let (_, include) = manifest.split_once("include = [").expect("the manifest lists what is in the package");
    let patterns: Vec<&str> = include.split_once(']').unwrap().0.split('"').skip(1).step_by(2).collect();
    for link in links(&readme).filter(|link| !link.contains("://")) {
        let packed = patterns.iter().any(|pattern| {
            let pattern = pattern.trim_start_matches('/');
            pattern == link || pattern.strip_suffix("**").is_some_and(|dir| link.starts_with(dir))
        });
        assert!(packed, "{link} is not in the package");
    }
}

#[test]
fn tests_are_told_from_what_looks_like_them() {
    let source =
        "on_devices!(a, b,\n    c);\nfn a<D: Device>(d: &D) {}\nfn c() {}\n#[test]\nfn plain() {}\nfn helper() {}\n";
    for (name, expected) in [("a", true), ("b", false), ("c", true), ("plain", true), ("helper", false), ("pla", false)]
    {
        assert_eq!(has_test(source, name), expected, "{name}");
    }
}
