//! Plants single faults in the sources, each alone, and says which of them the tests find: `.ci/mutants`.

mod emulation;
mod inventory;
mod kernels;
mod lexer;
mod process;
mod results;
mod rules;
mod rust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use inventory::{Class, Mutant, cpp_mutants, hash};
use process::Outcome;
use results::{Cache, Judged, Results};

#[derive(Parser)]
#[command(name = ".ci/mutants", about = "Plants single faults and says which of them the tests find")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Mode>,
    /// Faults of C++ sources that are tried at the same time
    #[arg(long, global = true, default_value_t = 2)]
    workers: usize,
    /// Ends after that time, and says how many faults are left; without a command 10, else without an end
    #[arg(long, global = true)]
    minutes: Option<u64>,
}

#[derive(Subcommand)]
enum Mode {
    /// Faults in functions that have changed since the last recorded sample, and again those that a changed test found; what CI
    /// does, and what happens without a command
    Changed,
    /// A random sample of everything
    Sample {
        /// Another seed gives another sample
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Faults of kernels, their headers and launchers
        #[arg(long, default_value_t = 300)]
        cuda: usize,
        /// Faults of the emulation
        #[arg(long, default_value_t = 100)]
        emulation: usize,
        /// Faults of the library
        #[arg(long, default_value_t = 150)]
        src: usize,
        /// Faults of the oracles and the CPU backend
        #[arg(long, default_value_t = 75)]
        oracle: usize,
        /// Conditions of launchers, all unless a number is given
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        conditions: usize,
        /// Checks of the wrappers' operands, all unless a number is given
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        operands: usize,
        /// Only files whose path begins like this
        #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true, conflicts_with = "record")]
        only: String,
        /// Writes mutants/results.txt, by which CI knows what has changed
        #[arg(long)]
        record: bool,
    },
    /// Single faults, with their change and the tests' output, whatever is known of them
    One {
        /// FILE, FILE:LINE, or the sixteen digits that a report gives
        place: String,
        /// Only faults of this rule
        rule: Option<String>,
    },
    /// Lists faults
    List {
        /// FILE or FILE:LINE; else all
        place: Option<String>,
        /// Only faults of this rule
        rule: Option<String>,
    },
    /// Lists the rules for C++ sources, with the number of faults of each
    Rules,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing survived that should not.
fn run(arguments: Arguments) -> Result<bool, String> {
    let work = rust::target().join("mutants");
    let work = std::path::absolute(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    let mut runner = Runner { cache: Cache::new(&work)?, work, workers: arguments.workers.max(1), deadline: None };
    let minutes = |default: Option<u64>| {
        let minutes = arguments.minutes.or(default);
        minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes))
    };
    match arguments.command.unwrap_or(Mode::Changed) {
        Mode::Changed => {
            runner.deadline = minutes(Some(10));
            runner.changed()
        }
        Mode::Sample { seed, cuda, emulation, src, oracle, conditions, operands, only, record } => {
            runner.deadline = minutes(None);
            let most = BTreeMap::from([
                (Class::Cuda, cuda),
                (Class::Emulation, emulation),
                (Class::Src, src),
                (Class::Oracle, oracle),
                (Class::Conditions, conditions),
                (Class::Operands, operands),
            ]);
            runner.sample(&seed.to_string(), &most, &only, record)
        }
        Mode::One { place, rule } => {
            let found = selected(&place, rule.as_deref())?;
            if found.is_empty() {
                return Err(format!("there is no fault at {place}: see `.ci/mutants list`"));
            }
            let mut all = true;
            for mutant in found {
                println!("{mutant}\n");
                let outcome = runner.one(&mutant)?;
                println!("{}: {} ({}): {}\n", mutant.id(), mutant.place(), mutant.rule, outcome.write());
                all &= outcome != Outcome::Survived;
            }
            Ok(all)
        }
        Mode::List { place, rule } => {
            for mutant in selected(&place.unwrap_or_default(), rule.as_deref())? {
                println!("{} {} {mutant}\n", mutant.id(), mutant.class);
            }
            Ok(true)
        }
        Mode::Rules => {
            let mutants = cpp_mutants()?;
            for (rule, what) in rules::RULES {
                let count = mutants.iter().filter(|mutant| mutant.rule == rule).count();
                println!("{rule:<11} {count:>5}  {what}");
            }
            Ok(true)
        }
    }
}

/// Every fault of every class. `rust`: also what cargo-mutants lists.
fn everything(rust: bool) -> Result<Vec<Mutant>, String> {
    let mut all = cpp_mutants()?;
    all.extend(rust::operands()?);
    if rust {
        all.extend(rust::listed(None)?);
    }
    Ok(all)
}

/// The faults of a place: a file, a line of it, or a name; all for an empty one.
fn selected(place: &str, rule: Option<&str>) -> Result<Vec<Mutant>, String> {
    let (file, line) = match place.rsplit_once(':') {
        Some((file, line)) => (file, Some(line.parse::<usize>().map_err(|_| format!("{place} is not FILE:LINE"))?)),
        None => (place, None),
    };
    let wanted = |mutant: &Mutant| {
        let here = mutant.file == file && line.is_none_or(|line| line == mutant.line);
        (place.is_empty() || here || mutant.id() == place) && rule.is_none_or(|rule| rule == mutant.rule)
    };
    let mut found = everything(false)?;
    found.retain(wanted);
    // Where it can be told from the place, nothing is installed in vain.
    let cpp = file.starts_with("cuda/") || file.starts_with("emulation/");
    if !cpp && (found.is_empty() || place.is_empty() || file.starts_with("src/")) {
        found.extend(rust::listed(None)?.into_iter().filter(wanted));
    }
    Ok(found)
}

/// In random order, and of the rules in turn: what is rare comes up, too.
fn drawn(mut mutants: Vec<Mutant>, seed: &str, most: usize) -> Vec<Mutant> {
    mutants.sort_by_cached_key(|mutant| hash([seed, &mutant.id(), &mutant.line.to_string()]));
    let mut rules: BTreeMap<String, VecDeque<Mutant>> = BTreeMap::new();
    for mutant in mutants {
        rules.entry(mutant.rule.clone()).or_default().push_back(mutant);
    }
    let mut found = Vec::new();
    while found.len() < most && !rules.is_empty() {
        for queue in rules.values_mut() {
            found.extend(queue.pop_front());
        }
        rules.retain(|_, queue| !queue.is_empty());
    }
    found.truncate(most);
    found
}

struct Runner {
    work: PathBuf,
    cache: Cache,
    workers: usize,
    deadline: Option<Instant>,
}

/// Faults with what became of them.
type Tried = Vec<(Mutant, Outcome)>;

impl Runner {
    fn changed(mut self) -> Result<bool, String> {
        let known = Results::load()?;
        let mut all = everything(false)?;
        // Only what has changed is worth a tool that takes minutes to install.
        let mut rust_files = BTreeSet::new();
        for file in inventory::files_below("src")? {
            let key = (Class::of_rust(&file).name().to_owned(), file.clone());
            if known.files.get(&key) != Some(&self.cache.surroundings(Class::of_rust(&file), &file)?) {
                rust_files.insert(file);
            }
        }
        if !rust_files.is_empty() {
            all.extend(rust::listed(Some(&rust_files))?);
        }
        stale(&all, rust_files.len() == inventory::files_below("src")?.len())?;

        let (old, new): (Vec<_>, Vec<_>) = all.into_iter().partition(|mutant| known.knows(mutant));
        let judged = Judged::load()?;
        let (mut again, mut gaps) = (Vec::new(), Tried::new());
        for mutant in old {
            let Some((_, _, _, outcome)) = known.faults.get(&mutant.id()) else { continue };
            let gap = *outcome == Outcome::Survived && !judged.iter().any(|judged| judged.is(&mutant));
            let key = (mutant.class.name().to_owned(), mutant.file.clone());
            let same = known.files.get(&key) == Some(&self.cache.surroundings(mutant.class, &mutant.file)?);
            if gap && same {
                gaps.push((mutant, Outcome::Survived));
            } else if !same && (gap || matches!(outcome, Outcome::Found(_))) {
                again.push(mutant);
            }
        }
        println!(
            "{} faults in what has changed, {} to be found again by what has changed around them",
            new.len(),
            again.len()
        );
        // Another change, another choice; the same change, the same.
        let seed = hash(new.iter().chain(&again).map(Mutant::id));
        let mut list = drawn(new, &seed, usize::MAX);
        list.extend(drawn(again, &seed, usize::MAX));
        let (mut tried, left) = self.run(list)?;
        tried.extend(gaps);
        report(&tried, left)
    }

    fn sample(mut self, seed: &str, most: &BTreeMap<Class, usize>, only: &str, record: bool) -> Result<bool, String> {
        let rust = [Class::Src, Class::Oracle].iter().any(|class| most[class] > 0) || record;
        let all = everything(rust)?;
        stale(&all, rust)?;
        let mut list = Vec::new();
        for class in Class::ALL {
            let of_class = all.iter().filter(|mutant| mutant.class == class && mutant.file.starts_with(only));
            let of_class: Vec<_> = of_class.cloned().collect();
            println!("{class}: {} faults", of_class.len());
            list.extend(drawn(of_class, seed, most[&class]));
        }
        let (tried, left) = self.run(list)?;
        if record {
            let mut results = Results::default();
            for mutant in &all {
                let key = (mutant.class.name().to_owned(), mutant.file.clone());
                results.files.insert(key, self.cache.surroundings(mutant.class, &mutant.file)?);
                results.items.insert((mutant.file.clone(), mutant.item.clone()));
            }
            // Files without faults are known, too.
            for file in inventory::files_below("src")? {
                let class = Class::of_rust(&file);
                results.files.insert((class.name().to_owned(), file.clone()), self.cache.surroundings(class, &file)?);
            }
            for (mutant, outcome) in &tried {
                let Mutant { class, file, rule, .. } = mutant;
                let entry = (class.name().to_owned(), file.clone(), rule.clone(), outcome.clone());
                results.faults.insert(mutant.id(), entry);
            }
            results.save()?;
        }
        report(&tried, left)
    }

    /// Tries a fault, whatever is known of it, and shows what the tests write.
    fn one(&mut self, mutant: &Mutant) -> Result<Outcome, String> {
        let outcome = match mutant.class {
            Class::Cuda | Class::Conditions => kernels::Kernels::new(&self.work, &[mutant])?.run(0, mutant, true)?,
            Class::Emulation => emulation::Emulation::new(&self.work, 1)?.run(0, mutant, true)?,
            Class::Src | Class::Oracle => rust::Rust::new(&self.work)?.run(mutant, true)?,
            Class::Operands => rust::Rust::new(&self.work)?.run_operand(mutant, true)?,
        };
        self.cache.put(mutant, &outcome)?;
        Ok(outcome)
    }

    /// Tries faults that nothing is known of, in the order of the list within each kind; the number of those left when the time was
    /// over comes with them.
    fn run(&mut self, list: Vec<Mutant>) -> Result<(Tried, usize), String> {
        std::fs::create_dir_all(&self.work).map_err(|error| format!("{}: {error}", self.work.display()))?;
        let mut tried = Tried::new();
        let mut open: [Vec<Mutant>; 4] = Default::default();
        for mutant in list {
            if let Some(outcome) = self.cache.get(&mutant)? {
                tried.push((mutant, outcome));
                continue;
            }
            let group = match mutant.class {
                Class::Operands => 0,
                Class::Cuda | Class::Conditions => 1,
                Class::Emulation => 2,
                Class::Src | Class::Oracle => 3,
            };
            open[group].push(mutant);
        }
        let known = tried.len();
        let total = known + open.iter().map(Vec::len).sum::<usize>();
        println!("{total} faults, {known} of them known");
        let mut groups_left = open.iter().filter(|group| !group.is_empty()).count();
        for (group, mutants) in open.into_iter().enumerate() {
            if mutants.is_empty() {
                continue;
            }
            // Each kind has its share of the time that is left.
            let now = Instant::now();
            let until = self.deadline.map(|end| now + end.saturating_duration_since(now) / groups_left as u32);
            groups_left -= 1;
            if until.is_some_and(|until| now >= until) {
                continue;
            }
            let done = Mutex::new((&mut self.cache, &mut tried));
            let note = |mutant: Mutant, outcome: Outcome| -> Result<(), String> {
                let mut done = done.lock().map_err(|_| "a worker panicked")?;
                done.0.put(&mutant, &outcome)?;
                done.1.push((mutant, outcome));
                let (mutant, outcome) = &done.1[done.1.len() - 1];
                println!("[{}/{total}] {} {}: {}", done.1.len(), mutant.place(), mutant.rule, outcome.write());
                Ok(())
            };
            let work = &self.work;
            match group {
                0 => {
                    let mut rust = rust::Rust::new(work)?;
                    in_turn(mutants, until, note, |mutant| rust.run_operand(mutant, false))?;
                }
                3 => {
                    let mut rust = rust::Rust::new(work)?;
                    in_turn(mutants, until, note, |mutant| rust.run(mutant, false))?;
                }
                1 => {
                    let kernels = kernels::Kernels::new(work, &mutants.iter().collect::<Vec<_>>())?;
                    at_once(self.workers, mutants, until, note, |worker, mutant| kernels.run(worker, mutant, false))?;
                }
                _ => {
                    let emulation = emulation::Emulation::new(work, self.workers)?;
                    at_once(self.workers, mutants, until, note, |worker, mutant| emulation.run(worker, mutant, false))?;
                }
            }
        }
        let left = total - tried.len();
        Ok((tried, left))
    }
}

fn in_turn(
    mutants: Vec<Mutant>,
    until: Option<Instant>,
    note: impl Fn(Mutant, Outcome) -> Result<(), String>,
    mut attempt: impl FnMut(&Mutant) -> Result<Outcome, String>,
) -> Result<(), String> {
    for mutant in mutants {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        let outcome = attempt(&mutant)?;
        note(mutant, outcome)?;
    }
    Ok(())
}

fn at_once(
    workers: usize,
    mutants: Vec<Mutant>,
    until: Option<Instant>,
    note: impl Fn(Mutant, Outcome) -> Result<(), String> + Sync,
    attempt: impl Fn(usize, &Mutant) -> Result<Outcome, String> + Sync,
) -> Result<(), String> {
    let queue = Mutex::new(VecDeque::from(mutants));
    let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
    let work = |worker: usize| {
        while until.is_none_or(|until| Instant::now() < until)
            && let Some(mutant) = next()
        {
            let outcome = attempt(worker, &mutant)?;
            note(mutant, outcome)?;
        }
        Ok::<(), String>(())
    };
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        running.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })
}

/// Fails when the list of judged survivors names a fault that is none any more. `rust`: the faults of all Rust files are among
/// those given.
fn stale(all: &[Mutant], rust: bool) -> Result<(), String> {
    let judged = Judged::load()?;
    let cpp_or_known = |judged: &&Judged| rust || !judged.file.starts_with("src/");
    let stale: Vec<_> =
        judged.iter().filter(cpp_or_known).filter(|judged| !all.iter().any(|mutant| judged.is(mutant))).collect();
    for judged in &stale {
        eprintln!("judged, but there is no such fault: {} {}\n{}", judged.file, judged.rule, judged.hunk);
    }
    if stale.is_empty() { Ok(()) } else { Err("mutants/judged.txt names faults that are none".into()) }
}

/// A fault as the list of judged survivors has it.
fn entry(mutant: &Mutant) -> String {
    format!("{} {}\n{}", mutant.file, mutant.rule, mutant.hunk)
}

/// Prints figures and survivors; whether there is none that nobody has judged.
fn report(tried: &Tried, left: usize) -> Result<bool, String> {
    let judged = Judged::load()?;
    let reason = |mutant: &Mutant| judged.iter().find(|judged| judged.is(mutant)).map(|judged| judged.reason.as_str());
    let survived = |entry: &&(Mutant, Outcome)| entry.1 == Outcome::Survived;
    for (mutant, _) in tried.iter().filter(survived).filter(|(mutant, _)| reason(mutant).is_some()) {
        println!("\njudged ({}):\n{}\n= {}", mutant.place(), entry(mutant), reason(mutant).unwrap_or_default());
    }
    let mut gaps = 0;
    for (mutant, _) in tried.iter().filter(survived).filter(|(mutant, _)| reason(mutant).is_none()) {
        println!("\nnot found, {} at {}:\n{}", mutant.id(), mutant.place(), entry(mutant));
        gaps += 1;
    }
    println!("\n| class | tried | not compiled | equal | judged equal | valid | found | not found | found of valid |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for class in Class::ALL {
        let of_class: Vec<_> = tried.iter().filter(|(mutant, _)| mutant.class == class).collect();
        if of_class.is_empty() {
            continue;
        }
        let count = |wanted: &dyn Fn(&Mutant, &Outcome) -> bool| {
            of_class.iter().filter(|(mutant, outcome)| wanted(mutant, outcome)).count()
        };
        let not_compiled = count(&|_, outcome| *outcome == Outcome::NotCompiled);
        let equal = count(&|_, outcome| *outcome == Outcome::Equal);
        let accepted = count(&|mutant, outcome| *outcome == Outcome::Survived && reason(mutant).is_some());
        let found = count(&|_, outcome| matches!(outcome, Outcome::Found(_)));
        let valid = of_class.len() - not_compiled - equal - accepted;
        let share = if valid == 0 { 100.0 } else { 100.0 * found as f64 / valid as f64 };
        println!(
            "| {class} | {} | {not_compiled} | {equal} | {accepted} | {valid} | {found} | {} | {share:.1}% |",
            of_class.len(),
            valid - found
        );
    }
    if left > 0 {
        println!("\n{left} faults are left: the time was over");
    }
    Ok(gaps == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inventory::mutants_of;

    #[test]
    fn samples_take_the_rules_in_turn() {
        let source = "int f() {\n  a = 1;\n  b = 2;\n  c = 3;\n  __syncthreads();\n}\n";
        let all = mutants_of(Class::Cuda, "x", source).unwrap();
        let sample = drawn(all.clone(), "1", 3);
        let rules: Vec<&str> = sample.iter().map(|mutant| mutant.rule.as_str()).collect();
        assert_eq!(rules, ["barrier", "constant", "statement"]);
        let ids = |seed: &str| drawn(all.clone(), seed, usize::MAX).iter().map(Mutant::id).collect::<Vec<_>>();
        assert_eq!(ids("1").len(), all.len());
        assert!(ids("1") == ids("1") && (2..9).any(|seed: u32| ids(&seed.to_string()) != ids("1")));
    }

    #[test]
    fn survivors_fail_the_run_and_judged_ones_do_not() {
        let mutants = mutants_of(Class::Cuda, "x", "int f() {\n  a = 1;\n}\n").unwrap();
        let entry = |outcome: Outcome| vec![(mutants[0].clone(), outcome)];
        assert!(!report(&entry(Outcome::Survived), 0).unwrap());
        assert!(report(&entry(Outcome::Found("a::b".into())), 3).unwrap());
        assert!(report(&entry(Outcome::Equal), 0).unwrap());
    }
}
