//! The command-line program.

mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
