//! A server program in a folder of its own, both of which are gone once we are.
//!
//! Every server here is run by a [`Process`]. It is stopped, and its folder removed, when the `Process` is
//! dropped; and also when our own process ends by a panic, Ctrl-C, `exit` or `kill -9`, because a keeper (a
//! shell process of its own) notices that. A `static` server is fine for that reason: statics are never
//! dropped, but their process ends.
//!
//! The one thing that leaves a server behind is killing its keeper together with us.

mod keeper;
mod user;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use keeper::KeepError;
use keeper::Keeper;
pub use user::{NoUser, User};

/// How long a server may take to stop when asked, before it is killed.
pub const GRACE: Duration = Duration::from_secs(5);

/// A new process waits for its word before it becomes the server: until then the keeper does not know it, and
/// if we died between the two nobody would. The end of the pipe instead of the word ends it.
const GATE: &str = r#"read -r go && exec "$@" </dev/null"#;

/// What is sent to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGQUIT.
    Quit,
    /// SIGKILL, to the whole process group.
    Kill,
    /// SIGSTOP, to the whole process group.
    Pause,
    /// SIGCONT, to the whole process group.
    Resume,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Interrupt => "INT",
            Signal::Terminate => "TERM",
            Signal::Quit => "QUIT",
            Signal::Kill => "KILL",
            Signal::Pause => "STOP",
            Signal::Resume => "CONT",
        }
    }
}

/// A server program, its folder, its log and its keeper.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::TcpStream;
/// use std::process::Command;
/// use std::time::Duration;
/// use servers::process::{Process, Signal};
///
/// let mut redis = Process::new("my-redis", Signal::Terminate)?;
/// redis.launch(Command::new("redis-server").args(["--port", "6380"]))?;
/// redis.ready(Duration::from_secs(10), || TcpStream::connect(("127.0.0.1", 6380)).is_ok())?;
/// redis.kill();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Process {
    keeper: Keeper,
    stop: Signal,
    user: Option<User>,
    running: Option<Child>,
    log_from: u64,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The program's process or its log could not be made.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Somebody ended the keeper, so nothing new is started.
    #[error("the keeper of {} is gone", folder.display())]
    KeeperGone {
        /// The folder it kept.
        folder: PathBuf,
    },
}

/// Why a program is not (or no longer) at work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// It ended instead.
    #[error("ended with {status} before it was ready; its log ends with:\n{log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        log: String,
    },
    /// It was not ready when the time was over.
    #[error("not ready within {} s; its log ends with:\n{log}", within.as_secs())]
    Late {
        /// The time it had.
        within: Duration,
        /// The last lines it wrote.
        log: String,
    },
}

/// Why a program that should do its work and end did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotDone {
    /// It failed.
    #[error("ended with {status}; its log ends with:\n{log}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        log: String,
    },
    /// It was still at work when the time was over, and was killed.
    #[error("still at work after {} s; its log ends with:\n{log}", within.as_secs())]
    Late {
        /// The time it had.
        within: Duration,
        /// The last lines it wrote.
        log: String,
    },
}

impl Process {
    /// A new folder, named after `name`, with a keeper and nothing running in it. `stop` is the signal that
    /// asks the server to end.
    pub fn new(name: &str, stop: Signal) -> Result<Process, KeepError> {
        let keeper = Keeper::start(name, stop)?;
        Ok(Process { keeper, stop, user: None, running: None, log_from: 0 })
    }

    /// Gives the folder to `user` and launches everything from now on as that user. Needs root.
    pub fn run_as(&mut self, user: User) -> io::Result<()> {
        chown(self.folder(), Some(user.uid()), Some(user.gid()))?;
        self.user = Some(user);
        Ok(())
    }

    /// Whom [`run_as`](Self::run_as) named.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// The folder: private to the user who runs the server, and removed at the end.
    pub fn folder(&self) -> &Path {
        self.keeper.folder()
    }

    /// Has the keeper run a shell command of one line at the end, before it removes the folder.
    pub fn finally(&mut self, command: &str) -> Result<(), LaunchError> {
        let told = self.keeper.tell("finally", OsStr::new(command));
        told.map_err(|_| LaunchError::KeeperGone { folder: self.folder().to_owned() })
    }

    /// Starts a program (after ending the one before) in a process group of its own, in the folder unless
    /// `command` says otherwise, with its output in the log.
    ///
    /// Of `command` the program, arguments, added or removed environment and current folder count.
    pub fn launch(&mut self, command: &Command) -> Result<(), LaunchError> {
        self.stop();
        let spawn = |source| LaunchError::Spawn {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        };
        let mut child = self.gated(command).map_err(spawn)?;
        let gate = child.stdin.take();
        let pid = child.id().to_string();
        if self.keeper.tell("watch", OsStr::new(&pid)).is_err() {
            drop(gate);
            child.wait().map_err(spawn)?;
            return Err(LaunchError::KeeperGone { folder: self.folder().to_owned() });
        }
        self.running = Some(child);
        // A failed write means the process ended already, which whoever waits for it will see with its status.
        gate.map(|mut gate| gate.write_all(b"go\n"));
        Ok(())
    }

    fn gated(&mut self, command: &Command) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        self.log_from = log.metadata()?.len();
        let mut gated = Command::new("/bin/sh");
        gated.args(["-c", GATE, "launch"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => gated.env(name, value),
                None => gated.env_remove(name),
            };
        }
        gated.current_dir(command.get_current_dir().unwrap_or(self.folder()));
        gated.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        if let Some(user) = &self.user {
            gated.uid(user.uid()).gid(user.gid());
        }
        gated.spawn()
    }

    /// Waits until `check` says yes, or the program ends, or the time is over.
    pub fn ready(&mut self, within: Duration, mut check: impl FnMut() -> bool) -> Result<(), NotReady> {
        let deadline = Instant::now() + within;
        loop {
            // Before and after: a stranger on the same port may answer for a server that has just given up.
            if let Some(status) = self.ended() {
                return Err(NotReady::Ended { status, log: self.log_tail() });
            }
            if check() && self.ended().is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(NotReady::Late { within, log: self.log_tail() });
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Waits until the program has done its work and ended well; for what prepares a server, such as `initdb`.
    pub fn done(&mut self, within: Duration) -> Result<(), NotDone> {
        match self.ended_within(within) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(NotDone::Failed { status, log: self.log_tail() }),
            None => {
                self.kill();
                Err(NotDone::Late { within, log: self.log_tail() })
            }
        }
    }

    /// Sends a signal and does not wait, but for a pause, which is there on return. Nothing happens when nothing runs.
    pub fn signal(&self, signal: Signal) {
        use rustix::process::{Pid, Signal as S, kill_process, kill_process_group};
        let Some(pid) = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return };
        // It is our own child and not yet waited for, so the only failure is that it has ended: no matter.
        match signal {
            Signal::Interrupt => kill_process(pid, S::INT),
            Signal::Terminate => kill_process(pid, S::TERM),
            Signal::Quit => kill_process(pid, S::QUIT),
            Signal::Kill => kill_process_group(pid, S::KILL),
            Signal::Pause => kill_process_group(pid, S::STOP),
            Signal::Resume => kill_process_group(pid, S::CONT),
        }
        .ok();
        if signal == Signal::Pause {
            let deadline = Instant::now() + Duration::from_secs(1);
            while runs(pid.as_raw_nonzero().get()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Asks the server to end and waits; kills it after [`GRACE`].
    pub fn stop(&mut self) {
        self.end_by(self.stop);
    }

    /// Kills the server (`kill -9`, its whole process group) and waits.
    pub fn kill(&mut self) {
        self.end_by(Signal::Kill);
    }

    /// Sends `signal` and waits for the end; kills the server after [`GRACE`].
    pub fn end_by(&mut self, signal: Signal) {
        if self.ended().is_some() {
            return;
        }
        self.signal(signal);
        self.signal(Signal::Resume);
        if self.ended_within(GRACE).is_none() {
            self.signal(Signal::Kill);
            self.ended_within(Duration::MAX);
        }
    }

    /// Whether the program runs.
    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// The id of the program's process, until it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Child::id)
    }

    /// The file that holds what the program wrote.
    pub fn log(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// The last lines that the program wrote since it was launched.
    pub fn log_tail(&self) -> String {
        let text = read_from(&self.log(), self.log_from).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Waits for the end for so long.
    pub(crate) fn ended_within(&mut self, within: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            let ended = self.ended();
            if ended.is_some() || started.elapsed() > within {
                return ended;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// The status of a program that has ended, or success when none was running.
    fn ended(&mut self) -> Option<ExitStatus> {
        let Some(child) = &mut self.running else { return Some(ExitStatus::from_raw(0)) };
        let status = child.try_wait().ok().flatten()?;
        self.running = None;
        // Without the word the keeper might one day signal a stranger who was given the same id.
        self.keeper.tell("gone", OsStr::new("")).ok();
        Some(status)
    }
}

/// The standard library cannot wait for a child with a deadline, nor for a socket to be there; a look costs
/// microseconds.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_from(path: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes a folder that only its owner enters, for `user` if there is one.
pub(crate) fn private_folder(path: &Path, user: Option<&User>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    match user {
        Some(user) => chown(path, Some(user.uid()), Some(user.gid())),
        None => Ok(()),
    }
}

/// Whether a thread of a process is not stopped yet: the signal reaches them one by one. Where there is no `/proc`, nobody
/// can tell.
fn runs(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok()).any(|stat| {
        // The state follows the name, which stands in parentheses and may hold some.
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('T'))
    })
}
