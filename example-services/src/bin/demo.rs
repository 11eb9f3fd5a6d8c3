//! `cargo demo`: see [`example_services::demo`].

fn main() -> std::process::ExitCode {
    example_services::demo::main()
}
