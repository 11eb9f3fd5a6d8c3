//! The payment service as a process of its own.

fn main() -> std::process::ExitCode {
    example_services::service::main(example_services::payment::DEFINITION)
}
